"""Batches on disk: what was written last is read, array by array, and a copy goes its own way."""

from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.calibration.store import BatchStore


def test_arrays_of_any_kind_come_back(tmp_path: Path) -> None:
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "across": np.arange(6.0).reshape(2, 3).T,
        "size": np.array(7),
        "none": np.zeros((0, 4), np.float16),
        "a/b:0": np.array([True, False]),
    }
    store = BatchStore(tmp_path)
    store.write(0, arrays)
    assert list(store.names(0)) == list(arrays)
    for name, values in arrays.items():
        found = store.read(0, name)
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype
    whole = store.read_all(0)
    assert list(whole) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(whole[name], values)


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_batch_that_is_written_again_and_a_copy(tmp_path: Path, memory: int) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    store = BatchStore(tmp_path / "one", memory)
    store.write(0, {"x": np.arange(1000)})
    other = store.fork(tmp_path / "two")
    store.write(0, {"y": np.arange(3)})
    assert (list(store.names(0)), list(other.names(0))) == (["y"], ["x"])
    np.testing.assert_array_equal(store.read(0, "y"), np.arange(3))
    np.testing.assert_array_equal(other.read(0, "x"), np.arange(1000))


def test_what_fits_the_memory_stays_there_and_the_rest_lies_in_files(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, memory=1000)
    arrays = [np.full(size, number, np.int8) for number, size in enumerate((600, 600, 400, 0))]
    for number, values in enumerate(arrays):
        store.write(number, {"x": values, "y": values[:0]})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert store.read(0, "x").base is arrays[0]
    for number, values in enumerate(arrays):
        np.testing.assert_array_equal(store.read(number, "x"), values)
        assert list(store.read_all(number)) == list(store.names(number)) == ["x", "y"]
    store.write(0, {"x": arrays[2]})
    store.write(1, {"x": arrays[0][:200]})  # there is room now
    assert store.read(1, "x").base is arrays[0]
    store.write(3, {})
    assert list(store.names(3)) == [] and store.read_all(3) == {}


def test_nobody_edits_what_is_held(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, memory=1000)
    store.write(0, {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="read-only"):
        store.read(0, "x")[:] = 1
