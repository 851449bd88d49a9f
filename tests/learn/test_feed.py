"""Which images a step takes: every one once an epoch, the same for any number of processes, from any step on."""

from collections.abc import Iterator, Sequence
from typing import Any

import classroom
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.data.source import Batch, Box, Source  # noqa: E402
from gpusq_onnx.errors import UnsupportedDataError, UsageError  # noqa: E402
from gpusq_onnx.learn.feed import Feed, Part  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402


class Counted(Source):
    """Sample i is the number i; remembers the boxes that it was asked for."""

    kind, croppable, labelled = "counted", True, True

    def __init__(self, size: int = 20, order: str = "random") -> None:
        self.size, self.boxes, self.broken = size, dict[int, Box](), {13}  # an image that cannot be read
        self.random_access = order == "random"

    def __len__(self) -> int:
        return self.size

    def read(self, indices: Sequence[int], boxes: Sequence[Box] | None = None) -> Batch:
        if boxes is not None:
            self.boxes.update(zip(indices, boxes, strict=True))
        good = np.array([i for i in indices if i not in self.broken], np.int64)
        return Batch({"x": good.astype(np.float32)[:, None]}, good, len(good), good)

    def batches(self, batch: int) -> Iterator[Batch]:
        for start in range(0, self.size, 3):
            rows = np.arange(start, min(start + 3, self.size))
            yield Batch({"x": rows.astype(np.float32)[:, None]}, rows, len(rows))

    def digest(self) -> str:
        return ""


def _seen(parts: list[Part]) -> list[int]:
    return [int(value) for part in parts for value in part.feed["x"][:, 0]]


def _flat(steps: list[list[int]]) -> list[int]:
    return [value for step in steps for value in step]


def _all(feed: Feed, start: int = 0) -> list[list[int]]:
    return [_seen(parts) for parts in feed.steps(start, feed.total)]


def test_an_epoch_is_a_permutation_and_the_next_another() -> None:
    steps = _all(Feed(Counted(), TrainingOptions(batch=4, epochs=2), seed=0))
    first, second = _flat(steps[:5]), _flat(steps[5:])
    assert sorted(first) == sorted(second) == [i for i in range(20) if i != 13]
    assert first != second and first != sorted(first)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_and_parts_share_a_step(accumulate: int) -> None:
    whole = _all(Feed(Counted(), TrainingOptions(batch=8), seed=3))
    settings = TrainingOptions(batch=8, accumulate=accumulate)
    shares = [_all(Feed(Counted(), settings, 3, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_the_next_images_stand_in_for_a_part_that_cannot_be_read() -> None:
    source = Counted()
    steps = _all(Feed(source, TrainingOptions(batch=1, epochs=1), 0))
    assert [len(step) for step in steps] == [1] * 20 and 13 not in _flat(steps)
    source.broken = set(range(20))
    with pytest.raises(UnsupportedDataError, match="no image of a training batch"):
        _all(Feed(source, TrainingOptions(batch=4), 0))


def test_a_run_goes_on_where_it_stopped() -> None:
    settings = TrainingOptions(batch=4, epochs=3)
    assert _all(Feed(Counted(), settings, 7), 6) == _all(Feed(Counted(), settings, 7))[6:]


def test_crops_follow_the_place_not_the_process() -> None:
    settings = TrainingOptions(batch=4, epochs=1, crop=0.3)
    alone, halves = Counted(), [Counted(), Counted()]
    _all(Feed(alone, settings, 5))
    for rank, source in enumerate(halves):
        _all(Feed(source, settings, 5, rank, 2))
    assert alone.boxes == halves[0].boxes | halves[1].boxes
    areas = [box.area for box in alone.boxes.values()]
    assert 0.3 <= min(areas) < max(areas) <= 1 and len(set(areas)) == 20
    whole = Counted()
    _all(Feed(whole, TrainingOptions(batch=4, epochs=1, crop=1), 5))
    assert not whole.boxes


def test_data_without_random_access_is_gone_through_in_order() -> None:
    source = Counted(order="given")
    feed = Feed(source, TrainingOptions(batch=4, epochs=2), seed=0)
    steps = _all(feed)
    assert _flat(steps) == [*range(20), *range(20)]
    assert _all(feed, 3) == steps[3:]
    assert not source.boxes and any("in its own order" in note for note in feed.notes)
    shares = [_all(Feed(source, TrainingOptions(batch=4, epochs=2), 0, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == steps


def test_labels_go_along_unless_they_are_not_wanted() -> None:
    (part,) = next(Feed(Counted(), TrainingOptions(batch=4), 0).steps(0, 1))
    targets = part.targets(torch.device("cpu"))
    assert targets is not None and targets.own.tolist() == _seen([part])
    (bare,) = next(Feed(Counted(), TrainingOptions(batch=4, labels=False), 0).steps(0, 1))
    assert bare.targets(torch.device("cpu")) is None


def test_what_cannot_be_split_is_said() -> None:
    with pytest.raises(UsageError, match="cannot be split"):
        Feed(Counted(), TrainingOptions(batch=5), 0, 0, 2)
    with pytest.raises(UnsupportedDataError, match="too few images"):
        Feed(Counted(1), TrainingOptions(batch=4), 0, 0, 2)
    small = Feed(Counted(3), TrainingOptions(batch=8), 0)
    assert (small.rows, small.per_epoch) == (3, 1) and any("no more" in note for note in small.notes)


def test_a_real_source_is_read() -> None:
    feed = Feed(classroom.data(), TrainingOptions(batch=8, epochs=1), 0)
    (part,) = next(feed.steps(0, 1))
    (x,) = part.tensors(list(part.feed), torch.device("cpu"))
    assert x.shape == (8, 3, 32, 32) or x.ndim == 4
    rows: Any = part.feed[next(iter(part.feed))]
    assert any(one.flip for one in part.looks)
    flips = [i for i, one in enumerate(part.looks) if one.flip]
    np.testing.assert_array_equal(x.numpy()[flips], rows[flips][..., ::-1])
