"""Observers against one-shot numpy results on all of the data, and the entropy search against NVIDIA's loop."""

import sys

import numpy as np
import pytest

from gpusq_onnx.quant.entropy import kl_divergences
from gpusq_onnx.quant.formats import FP8, INT4, INT8, fake_quantize
from gpusq_onnx.quant.observers import MSE, MinMax, Percentile, make_observer

KINDS = ["minmax", "percentile", "mse", "snr", "entropy"]


def families():
    rng = np.random.default_rng(0)
    gauss = rng.standard_normal((16, 50, 96)).astype(np.float32)
    yield "gauss", gauss
    yield "gelu-like", np.maximum(gauss, -0.17) * np.exp(gauss)
    yield "outlier channels", gauss * np.where(np.arange(96) % 32 == 5, 40, 1).astype(np.float32)
    yield "softmax-like", np.exp(6 * gauss) / np.exp(6 * gauss).sum(axis=-1, keepdims=True)
    yield "uniform", rng.uniform(-3, 3, (16, 50, 96)).astype(np.float32)


FAMILIES = pytest.mark.parametrize("x", [pytest.param(x, id=name) for name, x in families()])


def observed(kind, x, batches=8, **options):
    observer = make_observer(kind, **options)
    for part in np.split(x, batches):
        observer.update(part)
    return observer


def mean_squared(x, scale, fmt):
    return np.mean((fake_quantize(x, scale, fmt).astype(np.float64) - x) ** 2)


@FAMILIES
def test_minmax_is_exact(x):
    assert observed("minmax", x).scale(INT8) == pytest.approx(np.abs(x).max() / 127, rel=1e-6)


@FAMILIES
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99, 100.0])
def test_percentile_is_numpys_within_a_bin(x, percentile):
    observer = observed("percentile", x, percentile=percentile)
    assert isinstance(observer, Percentile)
    magnitudes = np.sort(np.abs(x).ravel())
    # Between neighbours in the sample any value is a percentile; numpy takes one of them.
    rank = percentile / 100 * magnitudes.size
    low, high = magnitudes[max(0, int(rank) - 2)], magnitudes[min(magnitudes.size - 1, int(rank) + 1)]
    clip = observer.scale(INT8) * 127
    assert low - observer.histogram.width <= clip <= high + observer.histogram.width


@FAMILIES
@pytest.mark.parametrize("fmt", [INT8, INT4], ids=lambda f: f"{f.bits} bits")
def test_mse_comes_near_the_best_clip_of_all(x, fmt):
    absmax = float(np.abs(x).max())
    best = min(mean_squared(x, absmax * r / fmt.largest, fmt) for r in np.geomspace(0.01, 1, 150))
    assert mean_squared(x, observed("mse", x).scale(fmt), fmt) <= 1.02 * best


def mean_decibels(samples, scale, fmt):
    return np.mean([10 * np.log10(np.mean(x.astype(np.float64) ** 2) / mean_squared(x, scale, fmt)) for x in samples])


@FAMILIES
@pytest.mark.parametrize("fmt", [INT8, INT4, FP8], ids=lambda f: f.name)
def test_snr_comes_near_the_best_mean_of_decibels(x, fmt):
    loud = x * np.geomspace(1, 30, len(x), dtype=np.float32).reshape(-1, 1, 1)
    absmax = float(np.abs(loud).max())
    best = max(mean_decibels(loud, absmax * r / fmt.largest, fmt) for r in np.geomspace(0.005, 1, 75))
    found = observed("snr", loud, batches=len(x), fmt=fmt).scale(fmt)
    assert mean_decibels(loud, found, fmt) >= best - 0.75  # clips are 1.5 dB apart


def test_samples_in_one_array_are_samples_one_by_one():
    x = next(families())[1]
    together = make_observer("snr")
    together.update(x, samples=len(x))
    assert together.scale(INT8) == observed("snr", x, batches=len(x)).scale(INT8)
    with pytest.raises(ValueError, match="watched for"):
        together.scale(INT4)


def test_auto_clips_nothing_of_a_float_grid():
    """One channel of a few tokens is huge in many trained ViTs: a float grid can hold it, so no clip may cut it off."""
    x = next(families())[1].copy()
    x.reshape(-1)[7] = 50 * np.abs(x).max()
    assert observed("auto", x, fmt=FP8).scale(FP8) == pytest.approx(float(np.abs(x).max()) / FP8.largest)
    assert observed("auto", x, fmt=INT8).scale(INT8) == observed("snr", x, fmt=INT8).scale(INT8)


def nvidia_divergences(counts, levels):
    """pytorch-quantization's `_compute_amax_entropy`, in its own steps: a loop over clips and over bins."""
    bins = counts.copy()
    bins[0] = bins[1]
    result = []
    for i in range(levels, len(bins) + 1):
        level = np.array([k * levels // i for k in range(i)])
        level[bins[:i] == 0] = -1
        density = np.zeros(i)
        for j in range(levels):
            members = level == j
            if members.any():
                density[members] = bins[:i][members].sum() / members.sum()
        reference = bins[:i].copy()
        reference[-1] += bins[i:].sum()
        p = reference / reference.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            q = density / density.sum()
            terms = np.where(p > 0, p * np.log(p / q), 0.0)
        result.append(np.sum(terms) if density.sum() > 0 else np.inf)
    return np.array(result)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [4, 16])
def test_kl_divergences_are_nvidias(seed, levels):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(200 * np.exp(-np.arange(96) / rng.uniform(3, 40))).astype(np.float64)
    counts[-1] += 1
    expected = nvidia_divergences(counts, levels)
    found = kl_divergences(counts, levels)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    finite = np.isfinite(expected)
    assert finite.any()
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-9, atol=1e-12)


@FAMILIES
def test_entropy_is_tensorrts_choice_on_the_one_shot_histogram(x):
    absmax = float(np.abs(x).max())
    counts, edges = np.histogram(np.abs(x), bins=2048, range=(0, absmax))
    divergences = kl_divergences(counts.astype(np.float64), 128)
    clip = observed("entropy", x).scale(INT8) * 127
    chosen = round(clip / absmax * 2048) - 128
    assert clip == pytest.approx(edges[chosen + 128], rel=1e-5)
    # Neighbouring clips differ in noise only: ours must be as good as the best, by the one-shot measure.
    nearby = divergences[max(0, chosen - 4) : chosen + 5]
    assert nearby.min() <= divergences.min() * 1.05 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_neither_order_nor_batches_matter(kind):
    x = next(families())[1]
    scale = observed(kind, x).scale(INT8)
    assert observed(kind, x[::-1]).scale(INT8) == scale
    assert observed(kind, -x).scale(INT8) == scale
    if kind != "snr":  # which takes an update for a sample
        assert observed(kind, x, batches=1).scale(INT8) == scale
        assert observed(kind, x, batches=16).scale(INT8) == scale


@pytest.mark.parametrize("kind", KINDS)
def test_scale_follows_the_unit(kind):
    x = next(families())[1]
    assert observed(kind, x * np.float32(0.25)).scale(INT8) == pytest.approx(
        observed(kind, x).scale(INT8) / 4, rel=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_is_represented_exactly(kind):
    scale = observed(kind, np.full((8, 100), -3.0, np.float32)).scale(INT8)
    assert scale * 127 == pytest.approx(3, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_only_nothing_and_nan(kind):
    assert observed(kind, np.zeros((8, 4), np.float32)).scale(INT8) == 1.0
    empty = make_observer(kind)
    empty.update(np.zeros((0, 7), np.float32))
    with pytest.raises(ValueError, match="seen no value"):
        empty.scale(INT8)
    with pytest.raises(ValueError, match="finite"):
        empty.update(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="seen no value"):
        empty.scale(INT8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_outlier_that_was_not_counted_is_no_accident(kind):
    """Subsampling can miss the largest value; its magnitude is known all the same."""
    x = np.zeros(4_000_000, np.float32)
    x[1] = 8.0
    scale = observed(kind, x, batches=1).scale(INT8)
    assert 0 < scale <= 8 / 127 * 1.0001


@pytest.mark.parametrize("kind", KINDS)
def test_state_does_not_grow(kind):
    observer = make_observer(kind)
    rng = np.random.default_rng(0)

    def size():
        state = vars(observer) | vars(getattr(observer, "histogram", observer))
        return sum(v.nbytes if isinstance(v, np.ndarray) else sys.getsizeof(v) for v in state.values())

    observer.update(rng.standard_normal(1000))
    before = size()
    for i in range(20):
        observer.update(rng.standard_normal(10_000) * 2**i)
    assert size() == before < 100_000


def test_a_percentile_ignores_what_minmax_must_cover():
    x = np.random.default_rng(1).standard_normal((8, 50_000)).astype(np.float32)
    x[0, 0] = 1000
    assert observed("minmax", x).scale(INT8) > 100 * observed("percentile", x).scale(INT8)


def test_observers_are_made_by_name():
    assert isinstance(make_observer("minmax"), MinMax)
    assert isinstance(make_observer("mse"), MSE)
    with pytest.raises(ValueError, match="'max'"):
        make_observer("max")
    for percentile in (0, 100.1, -5):
        with pytest.raises(ValueError, match=str(percentile)):
            make_observer("percentile", percentile=percentile)
