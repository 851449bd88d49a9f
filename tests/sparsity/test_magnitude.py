"""Magnitude pruning: exact zeros, untouched survivors, kept dtype and layout."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpusq_onnx.sparsity.magnitude import energy_kept, prune
from gpusq_onnx.sparsity.patterns import PAIRS_48, Pattern

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), PAIRS_48], ids=lambda p: p.name)
def test_survivors_keep_their_bits_and_the_rest_is_positive_zero(dtype, order, pattern):
    w = np.asarray(np.random.default_rng(0).standard_normal((24, 32)).astype(dtype), order=order)
    before = w.copy()
    pruned = prune(w, pattern)
    keep = pattern.mask(np.abs(w.astype(np.float64)))
    assert pruned.dtype == w.dtype
    assert pruned.strides == w.strides
    np.testing.assert_array_equal(pruned[keep], w[keep])
    assert not pruned[~keep].any()
    assert not np.signbit(pruned[~keep].astype(np.float32)).any()
    assert pattern.holds(pruned)
    np.testing.assert_array_equal(w, before)


@given(
    hnp.arrays(np.float32, (3, 8), elements=st.floats(-(2.0**80), 2.0**80, width=32)),
    st.integers(-20, 20),
)
def test_pruning_is_idempotent_and_knows_no_unit(w, exponent):
    pattern = Pattern(2, 4)
    pruned = prune(w, pattern)
    np.testing.assert_array_equal(prune(pruned, pattern), pruned)
    scaled = w * np.float32(2.0**exponent)
    if np.array_equal(scaled / np.float32(2.0**exponent), w):  # nothing lost to underflow
        np.testing.assert_array_equal(prune(scaled, pattern), pruned * np.float32(2.0**exponent))


@given(hnp.arrays(np.float64, (1, 4), elements=st.floats(-100, 100)))
def test_no_other_mask_keeps_more_energy(w):
    kept = np.sum(prune(w, Pattern(2, 4)) ** 2)
    others = [w[0, i] ** 2 + w[0, j] ** 2 for i in range(4) for j in range(i)]
    assert kept == pytest.approx(max(others), rel=1e-12, abs=0)


def test_strided_views_are_taken_as_they_are():
    base = np.random.default_rng(2).standard_normal((16, 3, 8)).astype(np.float32)
    view = base[:, 1, :]
    np.testing.assert_array_equal(prune(view, Pattern(2, 4)), prune(view.copy(), Pattern(2, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    w = np.ones((4, 8), np.float32)
    w[2, 3] = bad
    with pytest.raises(ValueError, match="finite"):
        prune(w, Pattern(2, 4))


def test_all_zero_weights_stay():
    zero = np.zeros((4, 8), np.float32)
    np.testing.assert_array_equal(prune(zero, Pattern(2, 4)), zero)
    assert energy_kept(zero, zero) == 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_energy_is_the_ratio_of_squared_sums(dtype):
    w = np.asfortranarray(np.random.default_rng(3).standard_normal((300, 700)).astype(dtype))
    pruned = prune(w, Pattern(2, 4))
    expected = np.sum(pruned.astype(np.float64) ** 2) / np.sum(w.astype(np.float64) ** 2)
    assert energy_kept(w, pruned) == pytest.approx(expected, rel=1e-6)
    assert energy_kept(w, w) == 1.0
