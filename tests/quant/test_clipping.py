"""Weight scales against a brute-force search over two thousand clips."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.formats import FP4, FP8, INT4, INT8, fake_quantize
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.sparsity.magnitude import prune
from gpusq_onnx.sparsity.patterns import Pattern


def error(w, scale, fmt):
    scale = np.asarray(scale, np.float64)[:, None]
    return np.sum((w - np.clip(np.rint(w / scale), -fmt.largest, fmt.largest) * scale) ** 2, axis=1)


def brute_force(w, fmt):
    peak = np.abs(w).max(axis=1)
    return np.min([error(w, peak * r / fmt.largest, fmt) for r in np.linspace(0.02, 1, 2000)], axis=0)


def families():
    rng = np.random.default_rng(0)
    yield "gauss", rng.standard_normal((40, 384))
    yield "heavy tails", rng.standard_t(3, (40, 384))
    yield "2:4", prune(rng.standard_normal((40, 384)), Pattern(2, 4))
    yield "one outlier", np.where(np.arange(384) == 7, 50, 1) * rng.standard_normal((40, 384))
    yield "few", rng.standard_normal((40, 4))
    yield "uniform", rng.uniform(-1, 1, (40, 384))


@pytest.mark.parametrize("fmt", [INT8, INT4], ids=lambda f: f"{f.bits} bits")
@pytest.mark.parametrize(("name", "w"), list(families()), ids=lambda v: v if isinstance(v, str) else "")
def test_mse_comes_near_the_best_clip_of_all(name, w, fmt):
    w = w.astype(np.float32)
    found = error(w, weight_scales(w, fmt), fmt)
    best = brute_force(w.astype(np.float64), fmt)
    assert np.all(found <= error(w, weight_scales(w, fmt, method="absmax"), fmt) * (1 + 1e-5))
    assert np.mean(found) <= 1.005 * np.mean(best)
    assert np.max(found / np.maximum(best, 1e-12)) <= 1.05


def test_for_4_bits_clipping_pays():
    w = np.random.default_rng(1).standard_normal((16, 768)).astype(np.float32)
    gain = error(w, weight_scales(w, INT4, method="absmax"), INT4) / error(w, weight_scales(w, INT4), INT4)
    assert gain.min() > 1.15


@pytest.mark.parametrize("fmt", [FP8, FP4], ids=lambda f: f.name)
def test_float_grids_are_searched_too(fmt):
    w = np.random.default_rng(4).standard_normal((16, 64)).astype(np.float32)
    off = {m: fake_quantize(w, weight_scales(w, fmt, method=m), fmt, axis=0) - w for m in ("mse", "absmax")}
    assert (np.square(off["mse"]).sum(axis=1) <= np.square(off["absmax"]).sum(axis=1) * (1 + 1e-5)).all()


def test_a_block_is_a_row_of_its_own():
    w = np.random.default_rng(6).standard_normal((3, 64)).astype(np.float32)
    scales = weight_scales(w, INT4, block=16)
    np.testing.assert_array_equal(scales.reshape(-1), weight_scales(w.reshape(-1, 16), INT4))
    with pytest.raises(ValueError, match="blocks of 24"):
        weight_scales(w, INT4, block=24)


def test_absmax_is_absmax():
    w = np.random.default_rng(2).standard_normal((5, 12)).astype(np.float32)
    np.testing.assert_array_equal(weight_scales(w, INT8, method="absmax"), np.abs(w).max(axis=1) / np.float32(127))


def test_pruned_weights_have_no_say():
    rng = np.random.default_rng(3)
    dense = rng.standard_normal((8, 64)).astype(np.float32)
    spread = np.zeros((8, 256), np.float32)
    spread[:, ::4] = dense
    np.testing.assert_allclose(weight_scales(spread, INT4), weight_scales(dense, INT4), rtol=1e-5)


@given(st.integers(-100, 100), st.integers(0, 5))
def test_scales_scale_with_the_weights(exponent, seed):
    w = np.random.default_rng(seed).standard_normal((3, 32)).astype(np.float32)
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(weight_scales(w * factor, INT8), weight_scales(w, INT8) * factor)


@pytest.mark.parametrize("method", ["mse", "absmax"])
def test_rows_do_not_see_each_other_nor_the_memory_order(method):
    w = np.random.default_rng(4).standard_normal((600, 300)).astype(np.float32)  # several chunks
    scales = weight_scales(w, INT8, method=method)
    np.testing.assert_array_equal(weight_scales(np.asfortranarray(w), INT8, method=method), scales)
    np.testing.assert_array_equal(weight_scales(w[123:124], INT8, method=method), scales[123:124])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
def test_other_dtypes_are_computed_in_float32(dtype):
    w = np.random.default_rng(5).standard_normal((4, 32)).astype(dtype)
    np.testing.assert_array_equal(weight_scales(w, INT8), weight_scales(w.astype(np.float32), INT8))
    assert weight_scales(w, INT8).dtype == np.float32


@pytest.mark.parametrize("method", ["mse", "absmax"])
def test_channels_of_zeros_and_of_the_tiniest_values_get_usable_scales(method):
    w = np.zeros((3, 8), np.float32)
    w[1] = 1e-44
    w[2, 0] = 1
    scales = weight_scales(w, INT8, method=method)
    assert scales[0] == 1
    assert scales[1] == np.float32(2.0**-126)
    assert scales[2] == pytest.approx(1 / 127)


def test_bad_arguments_are_refused():
    for bad in (np.nan, np.inf):
        w = np.ones((2, 4), np.float32)
        w[1, 1] = bad
        for method in ("mse", "absmax"):
            with pytest.raises(ValueError, match="finite"):
                weight_scales(w, INT8, method=method)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        weight_scales(np.ones(4), INT8)
    with pytest.raises(ValueError, match="'median'"):
        weight_scales(np.ones((2, 4)), INT8, method="median")
    assert weight_scales(np.ones((0, 4)), INT8).shape == (0,)
    np.testing.assert_array_equal(weight_scales(np.ones((2, 0)), INT8), [1, 1])


@pytest.mark.parametrize("block", [0, 32])
def test_importance_decides_what_is_clipped(block):
    rng = np.random.default_rng(8)
    w, m = rng.standard_normal((8, 64)).astype(np.float32), np.exp(2 * rng.standard_normal(64))

    def cost(scales):
        off = fake_quantize(w, Scales(scales, 1, block) if block else Scales(scales, 0), INT4) - w
        return (m * np.square(off)).sum(axis=1)

    known, plain = (cost(weight_scales(w, INT4, block=block, importance=each)) for each in (m, None))
    assert known.sum() < 0.95 * plain.sum()
    assert (known <= cost(weight_scales(w, INT4, method="absmax", block=block)) * (1 + 1e-5)).all()


def test_the_same_importance_for_all_is_none_and_dead_inputs_have_no_say():
    w = np.random.default_rng(9).standard_normal((8, 64)).astype(np.float32)
    plain = weight_scales(w, INT4)
    np.testing.assert_array_equal(weight_scales(w, INT4, importance=np.ones(64)), plain)
    wild = np.concatenate([w, 100 * w], axis=1)
    dead = np.repeat([1.0, 0.0], 64)
    assert weight_scales(wild, INT4, importance=dead).max() < 2 * np.abs(w).max() / 7
    assert (weight_scales(w, INT4, importance=np.zeros(64)) > 0).all()
