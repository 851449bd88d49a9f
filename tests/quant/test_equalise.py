"""Equalising factors: exact in floating point, helpful where there are outliers, harmless where there are none."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusq_onnx.quant.equalise import input_factors, middle, outlier_ratio, output_factors, peaks
from gpusq_onnx.quant.formats import INT8, fake_quantize


def _layer(seed: int, outlier: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((256, 64)).astype(np.float32)
    x[:, 5] *= outlier
    return x, rng.standard_normal((32, 64)).astype(np.float32)


def _error(x: np.ndarray, w: np.ndarray, s: np.ndarray) -> float:
    """Mean squared output error of INT8 with one scale for x / s and one a row for w * s."""
    xs, ws = x / s, w * s
    xq = fake_quantize(xs, float(np.abs(xs).max()) / 127, INT8)
    wq = fake_quantize(ws, np.abs(ws).max(axis=1) / 127, INT8, axis=0)
    return float(np.square(xq @ wq.T - x @ w.T).mean())


def test_peaks_are_per_channel_and_see_both_signs() -> None:
    x = np.array([[[1.0, -4.0], [2.0, 3.0]]], np.float32)
    assert peaks(x).tolist() == [2.0, 4.0]


def test_outlier_ratio_compares_with_the_median() -> None:
    assert outlier_ratio(np.array([1, 1, 1, 50], np.float32)) == 50
    assert outlier_ratio(np.array([2, 2, 2], np.float32)) == 1


def test_an_outlier_channel_is_divided_out_and_the_measured_error_falls() -> None:
    x, w = _layer(0, outlier=80)
    s, gain = input_factors(peaks(x), np.square(x).mean(axis=0), w)
    before, after = _error(x, w, np.ones(64, np.float32)), _error(x, w, s)
    assert s[5] == s.max()
    assert gain > 10
    assert after < before / 10
    assert 0.3 < (before / after) / gain < 3  # the model of the error is the error, roughly


def test_without_outliers_there_is_little_to_gain() -> None:
    x, w = _layer(1, outlier=1)
    _, gain = input_factors(peaks(x), np.square(x).mean(axis=0), w)
    assert gain < 2


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), outlier=st.floats(0, 1e4))
def test_factors_are_finite_positive_and_of_mean_one(seed: int, outlier: float) -> None:
    x, w = _layer(seed, outlier)
    for s in (input_factors(peaks(x), np.square(x).mean(axis=0), w)[0], output_factors(peaks(x))):
        assert np.isfinite(s).all()
        assert (s > 0).all()
        assert abs(np.log(s).mean()) < 1e-3


def test_dead_channels_get_no_extreme_factor() -> None:
    x, w = _layer(2, outlier=0)
    s, _ = input_factors(peaks(x), np.square(x).mean(axis=0), w)
    assert s.max() / s.min() < 1e5


def test_what_reaches_one_way_from_zero_has_a_middle_and_what_reaches_both_ways_has_none() -> None:
    x = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)
    relu = np.maximum(x, 0)
    found = middle(relu)
    assert abs(found - np.quantile(relu, 0.99) / 2) < 1e-3
    assert abs(middle(-relu) + found) < 1e-6
    assert middle(x) == 0
    assert middle(x + 0.5) == 0  # a little to one side
    assert middle(np.zeros((4, 4), np.float32)) == 0
    assert middle(np.zeros((0, 4), np.float32)) == 0


def test_a_few_huge_values_do_not_move_the_middle() -> None:
    x = np.maximum(np.random.default_rng(1).standard_normal((64, 1000)).astype(np.float32), 0)
    before = middle(x)
    x[3, :9] = 500
    assert abs(middle(x) - before) < 0.01
