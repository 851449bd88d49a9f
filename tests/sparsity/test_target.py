"""The weight to start from on inputs that are already off: the least-squares formula, written out."""

import numpy as np
import pytest

from gpusq_onnx.sparsity.gram import Gram
from gpusq_onnx.sparsity.target import RIDGE, WeightTarget

RNG = np.random.default_rng(0)
K, OUT, ROWS = 12, 70, 400
W = RNG.standard_normal((OUT, K)).astype(np.float32)
X = (RNG.standard_normal((ROWS, K)) * np.linspace(0.2, 2, K) + 0.5).astype(np.float32)
AHEAD = (0.3 * X @ RNG.standard_normal((K, K)) + 0.1 * RNG.standard_normal((ROWS, K)) + 0.2).astype(np.float32)
JOINED = (0.5 * X @ RNG.standard_normal((K, OUT)) - 0.3).astype(np.float32)


def made(parts: int, *, joined: bool = True, ahead: np.ndarray = AHEAD) -> tuple[Gram, WeightTarget]:
    gram = Gram(K)
    target = WeightTarget(W, gram)
    for rows in np.array_split(np.arange(ROWS), parts):
        gram.add(X[rows])
        target.add(X[rows], ahead[rows], JOINED[rows] if joined else None)
    return gram, target


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_it_is_the_ridge_solution(joined: bool, centred: bool) -> None:
    _, target = made(3, joined=joined)
    missing = AHEAD.astype(float) @ W.T + (JOINED if joined else 0)
    x, e = (a - a.mean(axis=0) if centred else a for a in (X.astype(float), missing))
    h = x.T @ x
    expected = W + np.linalg.solve(h + RIDGE * np.diag(h).mean() * np.eye(K), x.T @ e).T
    np.testing.assert_allclose(target.weight(centred=centred), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(target.mean, missing.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_batches_add_up() -> None:
    whole, parts = made(1)[1], made(7)[1]
    np.testing.assert_allclose(whole.weight(centred=True), parts.weight(centred=True), rtol=1e-4, atol=1e-5)


def test_the_dense_weight_stays_where_nothing_is_missing() -> None:
    _, target = made(2, joined=False, ahead=np.zeros_like(AHEAD))
    np.testing.assert_array_equal(target.weight(centred=True), W)
    assert not target.mean.any()


def test_no_rows_leave_the_weight() -> None:
    np.testing.assert_array_equal(WeightTarget(W, Gram(K)).weight(centred=True), W)


def test_sums_that_are_not_finite_are_an_error() -> None:
    gram = Gram(K)
    gram.add(X)
    with np.errstate(all="ignore"):
        target = WeightTarget(W * np.float32(1e38), gram)
        target.add(X, AHEAD, None)
        with pytest.raises(np.linalg.LinAlgError):
            target.weight(centred=True)
