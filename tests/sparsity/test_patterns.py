"""Masks and checks of N:M and pair-wise 4:8 against group-by-group references."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpusq_onnx.errors import UsageError
from gpusq_onnx.sparsity.patterns import PAIRS_48, Pattern, parse_pattern

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(2, 16), Pattern(3, 5), PAIRS_48]
by_name = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)

# Few distinct values, so that ties are common.
SCORES = st.sampled_from([0.0, 1.0, 1.0, 2.0, 0.5, 3.25, 1e-30, 1e30])


def reference_mask(pattern: Pattern, score):
    """Group by group, with Python's stable sort."""
    keep = np.zeros(score.shape, bool)
    for row in range(score.shape[0]):
        for start in range(0, score.shape[1], pattern.group):
            group = score[row, start : start + pattern.group].astype(np.float64)
            if pattern.unit == 2:
                energy = [group[2 * p] ** 2 + group[2 * p + 1] ** 2 for p in range(4)]
                for p in sorted(range(4), key=lambda p: -energy[p])[:2]:
                    keep[row, start + 2 * p : start + 2 * p + 2] = True
            else:
                for i in sorted(range(pattern.of), key=lambda i: -group[i])[: pattern.keep]:
                    keep[row, start + i] = True
    return keep


def reference_violations(pattern: Pattern, w):
    broken = 0
    for group in w.reshape(-1, pattern.group):
        if pattern.unit == 2:
            broken += sum(bool(np.any(group[2 * p : 2 * p + 2] != 0)) for p in range(4)) > 2
        else:
            broken += np.count_nonzero(group) > pattern.keep
    return broken


@by_name
@given(data=st.data())
def test_mask_is_the_reference_mask_ties_included(pattern, data):
    shape = (data.draw(st.integers(1, 4)), pattern.group * data.draw(st.integers(1, 3)))
    score = data.draw(hnp.arrays(np.float64, shape, elements=SCORES))
    expected = reference_mask(pattern, score)
    np.testing.assert_array_equal(pattern.mask(score), expected)
    np.testing.assert_array_equal(pattern.mask(np.asfortranarray(score)), expected)


@by_name
@given(data=st.data())
def test_violations_are_counted_group_by_group(pattern, data):
    shape = (data.draw(st.integers(1, 4)), pattern.group * data.draw(st.integers(1, 3)))
    w = data.draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 1, -128])))
    expected = reference_violations(pattern, w)
    assert pattern.violations(w) == pattern.violations(np.asfortranarray(w)) == expected
    assert pattern.holds(w) == (expected == 0)


@by_name
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 240), (300, 1200), (1200, 240)], ids=str)
def test_blocking_does_not_show(pattern, order, shape):
    """Shapes that span several blocks, and whole rows and columns that are longer than one."""
    rng = np.random.default_rng(0)
    k = shape[1] // pattern.group * pattern.group
    score = np.asarray(np.abs(rng.standard_normal((shape[0], k))).astype(np.float32), order=order)
    keep = pattern.mask(score)
    assert keep.flags.c_contiguous == score.flags.c_contiguous
    assert keep.flags.f_contiguous == score.flags.f_contiguous
    rows = rng.choice(shape[0], min(20, shape[0]), replace=False)
    np.testing.assert_array_equal(keep[rows], reference_mask(pattern, score[rows]))
    assert pattern.holds(keep)


def test_of_equal_scores_the_lower_index_stays():
    np.testing.assert_array_equal(Pattern(2, 4).mask(np.ones((1, 4))), [[True, True, False, False]])
    np.testing.assert_array_equal(Pattern(2, 4).mask(np.array([[1.0, 2, 1, 1]])), [[True, True, False, False]])
    np.testing.assert_array_equal(PAIRS_48.mask(np.zeros((1, 8))), [[True] * 4 + [False] * 4])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8], ids=str)
@pytest.mark.parametrize("tiny", [False, True])
def test_every_dtype_gives_the_mask_of_its_float64_values(dtype, tiny):
    rng = np.random.default_rng(1)
    score = np.abs(rng.integers(-60, 60, (8, 64)) * (1e-7 if tiny and dtype != np.int8 else 1)).astype(dtype)
    np.testing.assert_array_equal(Pattern(2, 4).mask(score), reference_mask(Pattern(2, 4), score.astype(np.float64)))


def test_pairs_of_tiny_and_huge_scores_neither_vanish_nor_overflow():
    score = np.array([[1, 1, 2, 2, 3, 3, 4, 4]], np.float32)
    for factor in (1e-30, 1e37):
        np.testing.assert_array_equal(
            PAIRS_48.mask(score * np.float32(factor)), [[False] * 4 + [True] * 4], err_msg=str(factor)
        )


def test_a_signed_zero_counts_as_zero():
    assert Pattern(2, 4).holds(np.array([[-0.0, 1, -0.0, 2]], np.float32))
    assert Pattern(2, 4).violations(np.array([[1, 1, 1, 0, 1, 1, 1, 1]], ml_dtypes.bfloat16)) == 2


def test_pairwise_is_stricter_than_2_4():
    w = np.array([[1, 0, 0, 1, 1, 0, 0, 1]])
    assert Pattern(2, 4).holds(w)
    assert PAIRS_48.violations(w) == 1


@by_name
def test_empty_weights_hold(pattern):
    empty = np.zeros((0, pattern.group * 2), np.float32)
    assert pattern.mask(empty).shape == empty.shape
    assert pattern.holds(empty)


@by_name
def test_bad_arrays_are_refused_with_their_shape(pattern):
    for call in (pattern.mask, pattern.violations, pattern.holds):
        with pytest.raises(ValueError, match=rf"k % {pattern.group} == 0; found .*\(3, 7\)"):
            call(np.ones((3, 7)))
        with pytest.raises(ValueError, match=r"w\[out, k\]; found shape \(16,\)"):
            call(np.ones(16))


@by_name
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(pattern, bad):
    score = np.ones((2, pattern.group))
    score[1, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        pattern.mask(score)


@by_name
def test_names_parse_back(pattern):
    assert parse_pattern(pattern.name) == pattern


@pytest.mark.parametrize("text", ["", "2", "2:", "4:2", "4:4", "0:4", "2:65", "2:4 ", "4:8pairs", "-1:4", "2/4"])
def test_other_texts_are_usage_errors(text):
    with pytest.raises(UsageError, match="2:4") as caught:
        parse_pattern(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (2, 65)])
def test_impossible_patterns_are_refused(n, m):
    with pytest.raises(ValueError, match=f"{n}:{m}"):
        Pattern(n, m)
