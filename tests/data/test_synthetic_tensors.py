"""Made-up tensors are legal inputs: ids that the table has, masks that keep everything, and the same each time."""

from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import UnsupportedDataError, UsageError

TOKENS, MASK = InputSpec("ids", np.dtype(np.int64), (2, 9)), InputSpec("mask", np.dtype(np.int64), (2, 9))
FEATURES = InputSpec("features", np.dtype(np.float16), (2, 3, 4))


def test_every_kind_of_input_gets_its_own_values() -> None:
    source = open_source(DataOptions(samples=5, seed=3), [TOKENS, MASK, FEATURES], lambda: {"ids": 7})
    first, *_, last = list(source.batches(4))
    assert (first.size, last.size, len(source)) == (2, 1, 5)
    assert {name: (x.dtype, x.shape) for name, x in last.feed.items()} == {
        "ids": (np.int64, (2, 9)), "mask": (np.int64, (2, 9)), "features": (np.float16, (2, 3, 4)),
    }  # fmt: skip
    ids = np.concatenate([batch.feed["ids"] for batch in source.batches(4)])
    assert set(np.unique(ids)) == set(range(7))
    assert (first.feed["mask"] == 1).all()
    again = open_source(DataOptions(samples=5, seed=3), [TOKENS, MASK, FEATURES], lambda: {"ids": 7})
    assert again.digest() == source.digest()
    np.testing.assert_array_equal(again.read([4]).feed["features"], source.read([4]).feed["features"])


def test_an_open_dimension_is_named() -> None:
    open_ids = InputSpec("ids", np.dtype(np.int64), ("batch", "tokens"))
    with pytest.raises(UnsupportedDataError, match=r"(?s)'ids'.*ids: int64 \[batch, tokens\].*--data FILE\.npz"):
        open_source(DataOptions(), [open_ids])


@pytest.mark.parametrize(
    ("lone", "says"),
    [((), "input 'size' has no axis 0"), ((3,), "axis 0 differs: 2 and 3")],
)
def test_inputs_without_a_batch_in_common_are_named(lone: tuple[int, ...], says: str, tmp_path: Path) -> None:
    """A threshold, or a size, as SAM's decoder has: one array of rows cannot feed it, a script can."""
    inputs = [FEATURES, InputSpec("size", np.dtype(np.float32), lone)]
    path = tmp_path / "data.npz"
    np.savez(path, features=np.zeros((2, 3, 4), np.float16), size=np.zeros((2, *lone), np.float32))
    with pytest.raises(UnsupportedDataError, match=rf"(?s)no batch in common: {says}.*load_data"):
        open_source(DataOptions(path=str(path)), inputs)


@pytest.mark.parametrize("lone", [(), (3,)])
def test_where_there_is_none_whole_feeds_are_made_up(lone: tuple[int, ...]) -> None:
    inputs = [
        InputSpec("size", np.dtype(np.float32), lone),
        FEATURES,
        InputSpec("free", np.dtype(np.float32), ("n", 5)),
    ]
    source = open_source(DataOptions(samples=7), inputs)
    rows = lone[0] if lone else 2
    feeds = list(source.batches(16))
    assert source.whole is not None and source.whole.count == len(feeds) == -(-7 // rows)
    assert len(source) == rows * len(feeds) == sum(batch.size for batch in feeds)
    wanted = {"size": lone, "features": (2, 3, 4), "free": (1, 5)}
    assert all({name: x.shape for name, x in batch.feed.items()} == wanted for batch in feeds)
    assert all(x.dtype == spec.dtype for batch in feeds for spec in inputs for x in [batch.feed[spec.name]])
    assert not np.array_equal(feeds[0].feed["features"], feeds[1].feed["features"])
    assert not source.random_access
    with pytest.raises(UsageError, match="cannot be read by index"):
        source.read([0])
