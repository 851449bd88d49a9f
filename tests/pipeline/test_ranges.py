"""Ranges, outliers and rounding errors of activations, against numpy on all the data at once."""

import numpy as np
import pytest

from gpusq_onnx.calibration.ranges import ContextError, MeanError, Watch
from gpusq_onnx.quant.formats import INT8, fake_quantize
from gpusq_onnx.quant.observers import make_observer


def _minmax(importance: object, fmt: object) -> object:
    return make_observer("minmax")


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_without_equalising_the_observer_sees_the_values() -> None:
    watch = Watch(_minmax, INT8)
    watch.update(np.array([[1.0, -3.0]], np.float32))
    watch.update(np.array([[2.0, 1.0]], np.float32))
    assert watch.factors is None
    assert watch.scale() == pytest.approx(3 / 127)


def test_an_input_with_a_massive_channel_is_equalised_from_the_first_batch_on() -> None:
    x = _rng().standard_normal((64, 32)).astype(np.float32)
    x[:, 3] *= 200
    watch = Watch(_minmax, INT8, "outliers", lambda: _rng().standard_normal((16, 32)).astype(np.float32))
    watch.update(x)
    first = watch.factors
    watch.update(x * 2)
    assert first is not None
    assert watch.factors is first
    assert watch.scale() == pytest.approx(float(np.abs(2 * x / first).max()) / 127, rel=1e-6)


def test_a_flat_input_gets_no_mul_and_an_output_only_for_outliers() -> None:
    x = _rng().standard_normal((64, 32)).astype(np.float32)
    flat = Watch(_minmax, INT8, "outliers", lambda: np.ones((16, 32), np.float32))
    output = Watch(_minmax, INT8, "outliers")
    flat.update(x)
    output.update(x)
    assert flat.factors is None
    assert output.factors is None
    massive = Watch(_minmax, INT8, "outliers")
    massive.update(x * np.where(np.arange(32) == 1, 100, 1).astype(np.float32))
    assert massive.factors is not None
    assert massive.factors.argmax() == 1


def test_the_shift_restores_the_mean_output() -> None:
    x = np.abs(_rng().standard_normal((500, 24))).astype(np.float32)
    w = _rng().standard_normal((8, 24)).astype(np.float32)
    watch = Watch(_minmax, INT8, "never", lambda: w)
    watch.update(x)
    scale = 0.3  # coarse, so that rounding has a mean
    error = MeanError(watch, scale)
    error.update(x[:300])
    error.update(x[300:])
    wq = fake_quantize(w, np.abs(w).max(axis=1) / 127, INT8, axis=0)
    outputs = fake_quantize(x, scale, INT8) @ wq.T + error.shift(w, wq)
    np.testing.assert_allclose(outputs.mean(axis=0), (x @ w.T).mean(axis=0), atol=1e-4)


def test_the_softmax_scale_is_the_one_of_least_product_error() -> None:
    rng = _rng()
    heads, tokens, depth = 2, 197, 16
    flat = rng.dirichlet(np.full(tokens, 5.0), (3, heads, tokens)).astype(np.float32)  # attention spread thin
    values = (1 + rng.standard_normal((3, heads, tokens, depth))).astype(np.float32)
    scales = [clip / 127 for clip in (1.0, 0.5, 0.1)]
    error = ContextError(scales, 0.02, (INT8, INT8))
    error.update(flat[:1], values[:1], 1)
    error.update(flat[1:], values[1:], 2)
    rounded = {s: fake_quantize(flat, s, INT8) @ fake_quantize(values, 0.02, INT8) for s in scales}
    measured = {s: float(np.square(r - flat @ values).sum()) for s, r in rounded.items()}
    assert error.scale == min(measured, key=measured.__getitem__) == scales[2]
    mean = (rounded[scales[2]] - flat @ values).mean(axis=(0, 2)).reshape(-1)
    np.testing.assert_allclose(error.mean, mean, rtol=1e-3, atol=1e-6)


def _context(*batches: tuple[np.ndarray, np.ndarray, int]) -> ContextError:
    error = ContextError([1 / 127], 0.02, (INT8, INT8))
    for batch in batches:
        error.update(*batch)
    return error


def test_attention_laid_out_otherwise_gives_the_same_error() -> None:
    """Heads that share keys and values, batch and heads as one axis, one image without a batch."""
    rng = _rng()
    softmax = rng.dirichlet(np.full(20, 5.0), (3, 4, 20)).astype(np.float32)
    values = (1 + rng.standard_normal((3, 4, 20, 8))).astype(np.float32)
    plain = _context((softmax[:2], values[:2], 2), (softmax[2:], values[2:], 1))
    assert plain.mean.shape == (32,)
    flat = [(s.reshape(-1, 20, 20), v.reshape(-1, 20, 8), len(s))
            for s, v in ((softmax[:2], values[:2]), (softmax[2:], values[2:]))]  # fmt: skip
    np.testing.assert_allclose(_context(*flat).mean, plain.mean)
    shared = _context((softmax, values[:, :1], 3))
    repeated = _context((softmax, np.repeat(values[:, :1], 4, axis=1), 3))
    np.testing.assert_allclose(shared.mean, repeated.mean)
    alone = _context((softmax[0, 0], values[0, 0], 1))
    np.testing.assert_allclose(alone.mean, _context((softmax[:1, :1], values[:1, :1], 1)).mean)


def test_heads_whose_place_is_unknown_have_no_mean() -> None:
    """[batch, heads, windows, ...], and an axis that changes from batch to batch and is not the batch."""
    rng = _rng()
    softmax = rng.dirichlet(np.full(5, 5.0), (2, 4, 3, 5)).astype(np.float32)
    values = rng.standard_normal((2, 4, 3, 5, 8)).astype(np.float32)
    error = _context((softmax, values, 2), (softmax, values, 2))
    assert error.mean.size == 0
    assert error.scale == 1 / 127
    moved = _context((softmax[0], values[0], 4), (softmax[0, :, :2], values[0, :, :2], 4))
    assert moved.mean.size == 0


def test_an_input_whose_weights_are_all_zero_still_has_a_scale():
    watch = Watch(lambda importance, fmt: make_observer("snr", importance=importance, fmt=fmt), INT8, "never",
                  lambda: np.zeros((16, 32), np.float32))  # fmt: skip
    watch.update(_rng().standard_normal((4, 32)).astype(np.float32))
    assert watch.scale() > 0


def test_one_image_in_ten_with_large_values_does_not_set_the_scale_however_images_are_batched():
    x = _rng().standard_normal((10, 50, 16)).astype(np.float32)
    x[3, :2] *= 40
    scales = []
    for size in (1, 5, 10):
        watch = Watch(lambda importance, fmt: make_observer("snr", importance=importance, fmt=fmt), INT8)
        for start in range(0, 10, size):
            watch.update(x[start : start + size].reshape(-1, 16), size)
        scales.append(watch.scale())
    assert len(set(scales)) == 1
    assert scales[0] * 127 < 1.5 * np.abs(np.delete(x, 3, axis=0)).max()
