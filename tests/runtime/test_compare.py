import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_models import CLASSES, INPUT, linear, save, two_outputs, weight

from gpusq_onnx.errors import UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.runtime.compare.outputs import compare


@dataclass
class Piece:
    feed: dict[str, np.ndarray]
    labels: np.ndarray | None
    size: int
    truth: np.ndarray | None = None


class Data:
    """Batches of one seeded array, as gpusq_onnx.data would yield them; remembers the batch sizes asked for.

    `filled`: the last batch is brought up to size, as for a model whose batch is fixed.
    """

    def __init__(
        self, samples: int, labels: np.ndarray | None = None, *, width: int = INPUT, filled: bool = False
    ) -> None:
        self.filled = filled
        self.x = np.random.default_rng(3).standard_normal((samples, width)).astype(np.float32)
        self.labels = labels
        self.asked: list[int] = []
        self.alive: list[int] = []
        self._seen: list[weakref.ref[np.ndarray]] = []

    def batches(self, batch: int) -> Iterator[Piece]:
        self.asked.append(batch)
        for start in range(0, len(self.x), batch):
            x = self.x[start : start + batch].copy()
            self._seen.append(weakref.ref(x))
            self.alive.append(sum(ref() is not None for ref in self._seen))
            labels = None if self.labels is None else self.labels[start : start + batch]
            size = len(x)
            if self.filled:
                x = np.concatenate([x, np.repeat(x[-1:], batch - size, axis=0)])
            piece = Piece({"x": x}, labels, size)
            del x
            yield piece
            del piece


class Accuracy:
    def __init__(self) -> None:
        self.right = self.n = 0

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        self.right += int((logits.argmax(1) == labels).sum())
        self.n += len(labels)

    def result(self) -> Mapping[str, float]:
        return {"top1": self.right / self.n, "n": self.n}


def test_a_model_equals_itself(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    found = compare(path, path, Data(20))
    (output,) = found.outputs
    assert (found.samples, found.top1_agreement, found.top5_agreement) == (20, 1.0, 1.0)
    assert (output.max_abs, output.mean_abs, output.nonfinite, output.shape_mismatches) == (0.0, 0.0, 0, 0)
    assert output.cosine_min == pytest.approx(1.0)
    assert found.reference_metrics is None


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_numbers_are_those_of_all_data_at_once_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    wb = weight() + 0.4 * weight(seed=9)
    data = Data(50, labels := np.random.default_rng(5).integers(0, CLASSES, 50))
    found = compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", wb), data, metric=Accuracy, batch=batch)
    a, b = (data.x.astype(np.float64) @ w for w in (weight(), wb))
    difference = np.abs(a - b)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    (output,) = found.outputs
    extent = a.max() - a.min()
    expected = [difference.max(), difference.mean(), extent, difference.max() / extent, difference.mean() / extent]
    got = [output.max_abs, output.mean_abs, output.reference_range, output.max_relative, output.mean_relative]
    assert got == pytest.approx(expected, rel=1e-4)
    assert [output.cosine_mean, output.cosine_min] == pytest.approx([cosine.mean(), cosine.min()], rel=1e-5)
    best = a.argmax(1)
    assert found.top1_agreement == pytest.approx((b.argmax(1) == best).mean())
    assert 0 < found.top1_agreement < 1
    assert found.top5_agreement == pytest.approx(
        np.mean([t in np.argsort(-r)[:5] for t, r in zip(best, b, strict=True)])
    )
    assert found.reference_metrics == {"top1": pytest.approx((best == labels).mean()), "n": 50}
    assert found.candidate_metrics == {"top1": pytest.approx((b.argmax(1) == labels).mean()), "n": 50}


@pytest.mark.parametrize(("fixed", "samples"), [(1, 5), (4, 10)])
def test_a_fixed_batch_is_kept_to_and_its_filling_not_counted(tmp_path: Path, fixed: int, samples: int) -> None:
    free, static = linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", weight() * 1.1, batch=fixed)
    data, reported = Data(samples, filled=True), list[int]()
    found = compare(free, static, data, progress=reported.append)
    assert data.asked == [fixed]
    assert (found.samples, sum(reported)) == (samples, samples)
    assert (
        found.outputs == compare(free, linear(tmp_path / "c.onnx", weight() * 1.1), Data(samples), batch=fixed).outputs
    )


def test_memory_is_flat(tmp_path: Path) -> None:
    data = Data(64)
    path = linear(tmp_path / "m.onnx")
    compare(path, path, data, batch=4)
    assert len(data.alive) == 16
    assert max(data.alive) <= 2


def test_a_model_with_two_outputs_is_compared_output_by_output(tmp_path: Path) -> None:
    data = Data(6, np.zeros(6, np.int64))
    found = compare(two_outputs(tmp_path / "a.onnx", 1.0), two_outputs(tmp_path / "b.onnx", 3.0), data, metric=Accuracy)
    y, z = found.outputs
    assert (y.name, y.max_abs) == ("y", 0.0)
    assert z.name == "z"
    assert z.max_abs == pytest.approx(2 * np.abs(data.x @ weight()).max(), rel=1e-5)
    assert z.cosine_min == pytest.approx(1.0)
    assert (found.top1_agreement, found.candidate_metrics) == (None, None)


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    broken = weight()
    broken[:, 2] = np.nan
    found = compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", broken), Data(5))
    (output,) = found.outputs
    assert output.nonfinite == 5
    assert output.max_abs == 0.0
    everything = linear(tmp_path / "c.onnx", np.full_like(broken, np.nan))
    (output,) = compare(linear(tmp_path / "a.onnx"), everything, Data(5)).outputs
    assert (output.nonfinite, output.max_abs, output.cosine_mean) == (5 * CLASSES, None, None)
    with pytest.raises(UnsupportedModelError, match="nothing but NaN"):
        compare(everything, linear(tmp_path / "a.onnx"), Data(5))


def test_models_with_other_inputs_or_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="outputs differ"):
        compare(linear(tmp_path / "a.onnx"), two_outputs(tmp_path / "b.onnx", 1.0), Data(2))
    with pytest.raises(UnsupportedModelError, match="different batch sizes"):
        compare(linear(tmp_path / "c.onnx", batch=2), linear(tmp_path / "d.onnx", batch=3), Data(2))


def test_data_that_does_not_fit_or_is_not_there_is_refused(tmp_path: Path) -> None:
    path = linear(tmp_path / "a.onnx")
    with pytest.raises(UnsupportedDataError, match="Got: 5 Expected: 16"):
        compare(path, path, Data(2, width=5))
    with pytest.raises(UnsupportedDataError, match="no data"):
        compare(path, path, Data(0))


def test_a_model_that_fails_in_the_middle_says_so(tmp_path: Path) -> None:
    from onnx import helper

    nodes: list[Any] = [helper.make_node("Reshape", ["x", "s"], ["y"], name="reshape")]
    path = save(tmp_path / "m.onnx", nodes, {"s": np.array([3, 5], np.int64)})
    with pytest.raises(UnsupportedModelError, match="reshape"):
        compare(path, path, Data(2))


def test_outputs_whose_shapes_depend_on_the_model_are_counted_as_not_compared(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"])]

    def sliced(name: str, end: int) -> Path:
        return save(tmp_path / name, nodes, {"start": np.array([0]), "end": np.array([end]), "axis": np.array([1])})

    (output,) = compare(sliced("a.onnx", 3), sliced("b.onnx", 4), Data(10), batch=5).outputs
    assert (output.shape_mismatches, output.max_abs) == (2, None)
