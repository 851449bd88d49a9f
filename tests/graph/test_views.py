"""Views: whatever the chain of steps, writing back what was read changes nothing, and what is written is read again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusq_onnx.graph.views import Cut, Kernel, Squeeze, Transpose, View


@st.composite
def views(draw):
    """A stored shape and a view of it that ends in two dimensions."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=3)))
    shape = tuple(draw(st.permutations([*shape, *[1] * draw(st.integers(0, 2))])))
    steps, seen = [], list(shape)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["permute", "cut"]))
        if kind == "permute":
            perm = tuple(draw(st.permutations(range(len(seen)))))
            steps.append(Transpose(perm))
            seen = [seen[p] for p in perm]
        else:
            axis = draw(st.integers(0, len(seen) - 1))
            start = draw(st.integers(0, seen[axis] - 1))
            stop = draw(st.integers(start + 1, seen[axis]))
            steps.append(Cut(axis, start, stop))
            seen[axis] = stop - start
    ones = [a for a, n in enumerate(seen) if n == 1]
    drop = tuple(sorted(ones[: len(seen) - 2]))
    if drop:
        steps.append(Squeeze(drop))
        seen = [n for a, n in enumerate(seen) if a not in drop]
    if len(seen) > 2:
        steps.append(Kernel(tuple(seen)))
    return shape, View(tuple(steps))


def numbered(shape):
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)


@given(views())
def test_writing_what_was_read_changes_nothing(case):
    shape, view = case
    stored = numbered(shape)
    np.testing.assert_array_equal(view.write(view.read(stored), stored), stored)
    np.testing.assert_array_equal(stored, numbered(shape))


@given(views())
def test_what_is_written_is_read_and_nothing_else_changes(case):
    shape, view = case
    stored = numbered(shape)
    seen = view.read(stored)
    written = view.write(-seen - 1, stored)
    np.testing.assert_array_equal(view.read(written), -seen - 1)
    assert int((written != stored).sum()) == seen.size
    assert set(written[written < 0].tolist()) == set((-seen - 1).reshape(-1).tolist())


@given(views())
def test_shape_and_axes(case):
    shape, view = case
    seen = view.read(numbered(shape))
    assert view.shape(shape) == seen.shape
    if any(isinstance(step, Kernel) for step in view.steps):
        return
    for axis in (0, 1):
        if seen.shape[axis] > 1:
            step = np.take(seen, 1, axis=axis) - np.take(seen, 0, axis=axis)
            stride = int(np.prod(shape[view.stored_axis(axis) + 1 :]))
            assert set(step.reshape(-1).tolist()) == {stride}


@given(views())
def test_cuts_name_the_stored_axis(case):
    shape, view = case
    whole, index = numbered(shape), [slice(None)] * len(shape)
    for axis, cut in view.cuts():
        start = index[axis].start or 0
        index[axis] = slice(start + cut.start, start + cut.stop)
    assert set(whole[tuple(index)].reshape(-1).tolist()) == set(view.read(whole).reshape(-1).tolist())


def test_a_linear_is_read_without_a_copy():
    stored = np.ones((8, 4), np.float32)
    assert np.shares_memory(View((Transpose((1, 0)),)).read(stored), stored)


@pytest.mark.parametrize("view", [View((Transpose((1, 0)),)), View((Cut(0, 0, 2), Transpose((1, 0))))])
def test_views_are_keys(view):
    assert {view: 1}[View(view.steps)] == 1
