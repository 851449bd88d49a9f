import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Batch, InputSpec, Source
from gpusq_onnx.errors import UnsupportedDataError
from gpusq_onnx.scratch import Scratch, naming

F32 = np.dtype(np.float32)
X = InputSpec("x", F32, ("batch", 2, 3))
SIZE = InputSpec("size", np.dtype(np.int64), ("batch", 2))
ROWS = np.arange(60, dtype=np.float32).reshape(10, 2, 3)


def gather(source: Source, name: str = "x", batch: int = 4) -> np.ndarray:
    return np.concatenate([b.feed[name][: b.size] for b in source.batches(batch)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_two_inputs_and_labels(tmp_path: Path, save: Callable[..., None]) -> None:
    sizes = np.arange(20).reshape(10, 2)
    save(tmp_path / "d.npz", x=ROWS, size=sizes, labels=np.arange(10, dtype=np.int32))
    source = open_source(DataOptions(path=tmp_path / "d.npz"), [X, SIZE])
    assert source.labelled
    np.testing.assert_array_equal(gather(source), ROWS)
    np.testing.assert_array_equal(gather(source, "size"), sizes)
    labels = [b.labels for b in source.batches(4)]
    assert [None if part is None else part.tolist() for part in labels] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(part is not None and part.dtype == np.int64 for part in labels)


def test_npy_feeds_the_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    source = open_source(DataOptions(path=tmp_path / "d.npy"), [X])
    assert (len(source), source.labelled) == (10, False)
    np.testing.assert_array_equal(gather(source), ROWS)


def test_samples_take_one_row_of_each_stretch(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)

    def rows(seed: int) -> list[int]:
        source = open_source(DataOptions(path=tmp_path / "d.npy", samples=5, seed=seed), [X])
        return [int(row[0, 0]) // 6 for row in gather(source)]

    assert [row // 2 for row in rows(0)] == [0, 1, 2, 3, 4]
    assert rows(0) == rows(0)
    assert any(rows(seed) != rows(0) for seed in (1, 2, 3))


def test_static_batch_is_filled(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    source = open_source(DataOptions(path=tmp_path / "d.npy"), [InputSpec("x", F32, (4, 2, 3))])
    batches: list[Batch] = list(source.batches(1))
    assert [b.size for b in batches] == [4, 4, 2]
    np.testing.assert_array_equal(batches[-1].feed["x"], ROWS[[8, 9, 9, 9]])


def test_digest_is_of_the_rows_used(tmp_path: Path) -> None:
    def digest(array: np.ndarray, **options: object) -> str:
        np.savez(tmp_path / "d.npz", x=array)
        return open_source(DataOptions(path=tmp_path / "d.npz", **options), [X]).digest()  # type: ignore[arg-type]

    changed = ROWS.copy()
    changed[7] += 1
    assert digest(ROWS) == digest(ROWS)
    assert digest(ROWS) != digest(changed)
    assert digest(ROWS, samples=5) != digest(ROWS)


def test_memory_is_one_batch(tmp_path: Path) -> None:
    wide = InputSpec("x", F32, ("batch", 10_000))
    peaks = []
    for count in (8, 200):
        np.savez(tmp_path / "d.npz", x=np.zeros((count, 10_000), np.float32))
        source = open_source(DataOptions(path=tmp_path / "d.npz"), [wide])
        tracemalloc.start()
        for _ in source.batches(4):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def test_image_options_on_arrays_are_noted(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    source = open_source(DataOptions(path=tmp_path / "d.npy", resize=256, samples=99, calibrate=5, hold_out=2), [X])
    assert source.notes == [
        "arrays go in as they are: resize not applied",
        "99 samples asked for, 10 there are: all of them are used",
    ]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": ROWS}, "lacks x and holds unknown y"),
        ({"x": ROWS, "more": ROWS}, "holds unknown more"),
        ({"x": ROWS.astype(np.float64)}, "astype('float32')"),
        ({"x": ROWS.astype(">f4")}, "does not fit"),
        ({"x": ROWS[0]}, "found: float32 [2, 3]"),
        ({"x": ROWS.reshape(10, 3, 2)}, "expected: x: float32 [batch, 2, 3]"),
        ({"x": ROWS[:0]}, "d.npz holds no samples\n  expected: one or more samples\n  found: x: [0, 2, 3]"),
        ({"x": ROWS, "labels": np.arange(9)}, "x: 10, labels: 9"),
        ({"x": ROWS, "labels": np.ones(10)}, "not class indices"),
        ({"x": np.asfortranarray(ROWS)}, "ascontiguousarray"),
        ({"x": np.array([{}, {}])}, "Python objects"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "d.npz", allow_pickle=True, **arrays)
    with pytest.raises(UnsupportedDataError) as error:
        open_source(DataOptions(path=tmp_path / "d.npz"), [X])
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": ROWS.reshape(10, 3, 2)}, "data does not fit the model's input 'x'"),
        ({"y": ROWS}, "data lacks x"),
        ({"x": ROWS, "labels": np.ones(10)}, "labels in data are not"),
        ({"x": ROWS[:0]}, "data holds no samples"),
    ],
)
def test_arrays_from_memory_are_called_data(arrays: dict[str, np.ndarray], says: str) -> None:
    """And not by the scratch file that they lie in, in whose place errors name the model."""

    def opened() -> None:
        with naming("model.onnx"), Scratch() as folder:
            np.savez(folder / "data.npz", allow_pickle=True, **arrays)
            open_source(DataOptions(path=folder / "data.npz"), [X])

    with pytest.raises(UnsupportedDataError) as error:
        opened()
    assert says in str(error.value)


def test_npy_cannot_feed_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    with pytest.raises(UnsupportedDataError, match=r"\.npz"):
        open_source(DataOptions(path=tmp_path / "d.npy"), [X, SIZE])


@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04"])
def test_files_that_are_no_arrays(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsupportedDataError, match=name):
        open_source(DataOptions(path=tmp_path / name), [X])


def test_a_truncated_file_is_an_error_on_opening(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    (tmp_path / "d.npy").write_bytes((tmp_path / "d.npy").read_bytes()[:-5])
    with pytest.raises(UnsupportedDataError, match="its header speaks of"):
        open_source(DataOptions(path=tmp_path / "d.npy"), [X])


def test_nan_is_refused(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[5, 0, 0] = np.nan
    np.save(tmp_path / "d.npy", rows)
    with pytest.raises(UnsupportedDataError, match="rows 4 to 7"):
        gather(open_source(DataOptions(path=tmp_path / "d.npy"), [X]))
