"""Sums that decide: exact to float64's precision where float32 has long stopped counting."""

import math

import ml_dtypes
import numpy as np
import pytest

from gpusq_onnx.sparsity.gram import Gram
from gpusq_onnx.sums import column_dots, matvec, row_dots, squared_sum

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def _normal(*shape: int, dtype: object = np.float32) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_they_are_the_sums_in_float64(dtype: object, order: str) -> None:
    a, b = (np.asarray(_normal(130, 200, dtype=dtype), order=order) for _ in range(2))  # type: ignore[call-overload]
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    np.testing.assert_allclose(row_dots(a, b), (wide_a * wide_b).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(column_dots(a, b), (wide_a * wide_b).sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(matvec(a, b[0]), wide_a @ wide_b[0], rtol=1e-12, atol=1e-12)
    assert squared_sum(a) == pytest.approx(np.sum(wide_a**2), rel=1e-12)


def test_what_a_large_number_drowns_in_float32_still_counts() -> None:
    """1 and then many squares of 2^-13, each below half a step of float32 at 1."""
    small = np.full(1 << 16, 2.0**-13, np.float32)
    x = np.concatenate([np.ones(1, np.float32), small])
    expected = 1 + small.size * 2.0**-26
    assert float(np.cumsum(np.square(x), dtype=np.float32)[-1]) == 1.0
    assert squared_sum(x) == expected
    assert row_dots(x[None], x[None])[0] == pytest.approx(expected, rel=1e-6)
    assert column_dots(x[:, None], x[:, None])[0] == pytest.approx(expected, rel=1e-6)


def test_products_that_overflow_float32_are_finite() -> None:
    x = np.array([[1e34, 0.0, 1.0]], np.float32)
    np.testing.assert_allclose(column_dots(x, x), [1e68, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(row_dots(x, x), [1e68], rtol=1e-6)


def test_batches_of_a_gram_that_float32_would_lose_add_up() -> None:
    gram = Gram(1)
    gram.add(np.full((1, 1), 2.0**13, np.float32))
    for _ in range(64):
        gram.add(np.ones((1, 1), np.float32))
    assert gram.sums(centred=False)[0, 0] == 2.0**26 + 64


def test_the_tiles_of_a_gram_are_its_whole() -> None:
    x = _normal(64, 1100)
    gram = Gram(1100)
    gram.add(x)
    expected = x.T.astype(np.float64) @ x
    np.testing.assert_allclose(gram.sums(centred=False), expected, atol=1e-5 * math.sqrt(64))
    centred = x - x.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(gram.sums(centred=True), centred.T @ centred, atol=1e-5 * math.sqrt(64))
    assert (gram.sums(centred=True) == gram.sums(centred=True).T).all()
