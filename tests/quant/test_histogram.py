"""The streaming histogram against numpy's, in one shot, and its promises about order, memory and time."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpusq_onnx.quant.histogram import Histogram

VALUES = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def fed(parts, **options):
    histogram = Histogram(**options)
    for part in parts:
        histogram.update(part)
    return histogram


@given(st.lists(VALUES, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_updates_does_not_show_at_all(parts, random):
    shuffled = parts.copy()
    random.shuffle(shuffled)
    one, other = fed(parts, bins=64), fed(shuffled, bins=64)
    np.testing.assert_array_equal(one.counts, other.counts)
    assert (one.width, one.minimum, one.maximum) == (other.width, other.minimum, other.maximum)


@given(st.lists(VALUES, max_size=5))
def test_it_is_numpys_histogram_of_everything_at_once(parts):
    histogram = fed(parts, bins=64)
    everything = np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float64)
    expected, _ = np.histogram(np.abs(everything), bins=histogram.edges)
    np.testing.assert_array_equal(histogram.counts, expected)
    if everything.size:
        assert (histogram.minimum, histogram.maximum) == (everything.min(), everything.max())
        assert histogram.absmax == np.abs(everything).max()
    if histogram.absmax:
        top = 64 * histogram.width
        assert top / 2 <= histogram.absmax < top


def test_zeros_first_cost_no_resolution():
    histogram = fed([np.zeros(5), np.full(3, 1e-20), np.zeros(2), np.array([1.0])], bins=8)
    assert histogram.width == 0.25
    np.testing.assert_array_equal(histogram.counts, [10, 0, 0, 0, 1, 0, 0, 0])


def test_large_arrays_are_counted_in_part_and_every_channel_and_token_is_seen():
    channels, tokens = 96, 197
    x = np.zeros((4, tokens, channels), np.float32)
    histogram = Histogram(per_update=5000)
    for channel in range(channels):
        x[...] = 0
        x[:, :, channel] = 1
        before = histogram.counts.sum(), np.count_nonzero(histogram.counts)
        histogram.update(x)
        counted = histogram.counts.sum() - before[0]
        assert 2500 < counted <= 5000
    ones = histogram.counts[1:].sum()
    assert ones == pytest.approx(histogram.counts.sum() / channels, rel=0.05)
    for token in range(0, tokens, 14):
        x[...] = 0
        x[:, token] = 1
        before = histogram.counts[1:].sum()
        histogram.update(x)
        assert histogram.counts[1:].sum() - before == pytest.approx(5000 / tokens, rel=0.4)


def test_extremes_are_exact_whatever_is_counted():
    x = np.zeros(1_000_000, np.float32)
    x[777_777], x[1] = 123.0, -456.0
    histogram = fed([x], per_update=100)
    assert (histogram.minimum, histogram.maximum, histogram.absmax) == (-456.0, 123.0, 456.0)
    assert histogram.edges[-1] > 456


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int8], ids=str)
def test_other_dtypes_and_layouts_count_the_same(dtype):
    x = np.random.default_rng(0).integers(-128, 127, (20, 30)).astype(dtype)
    expected = fed([x.astype(np.float32)])
    for view in (x, x.T, np.asfortranarray(x), x[::-1]):
        np.testing.assert_array_equal(fed([view]).counts, expected.counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("first", [False, True])
def test_values_that_are_not_finite_are_refused_and_leave_no_trace(bad, first):
    histogram = fed([] if first else [np.ones(3)])
    before = histogram.counts.copy(), histogram.width, histogram.absmax
    with pytest.raises(ValueError, match="finite"):
        histogram.update(np.array([5.0, bad, 7.0], np.float32))
    np.testing.assert_array_equal(histogram.counts, before[0])
    assert (histogram.width, histogram.absmax) == before[1:]


def test_empty_arrays_change_nothing():
    histogram = fed([np.zeros((0, 5)), np.zeros(0)])
    assert not histogram.counts.any()
    assert histogram.absmax == 0


@pytest.mark.parametrize("bins", [0, 1, 3, 100])
def test_bins_are_a_power_of_two(bins):
    with pytest.raises(ValueError, match=str(bins)):
        Histogram(bins)
