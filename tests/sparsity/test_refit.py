"""The refit against an exact least-squares solution, channel by channel."""

import itertools

import numpy as np
import pytest

from gpusq_onnx.sparsity.magnitude import prune
from gpusq_onnx.sparsity.patterns import Pattern
from gpusq_onnx.sparsity.refit import refit


def problem(seed, k=48, out=20):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((500, k)) @ (np.eye(k) + rng.standard_normal((k, k)) / 5) * np.exp(rng.standard_normal(k))
    w = rng.standard_normal((out, k)).astype(np.float32)
    return w.T.copy(), prune(w, Pattern(2, 4)).T.copy(), x.T @ x


def loss(w, pruned, h):
    d = w.astype(np.float64) - pruned
    return float(np.sum(d * (h @ d)))


def exact(w, start, h):
    best = np.zeros(w.shape)
    for channel in range(w.shape[1]):
        kept = np.flatnonzero(start[:, channel])
        best[kept, channel] = np.linalg.solve(h[np.ix_(kept, kept)], h[kept] @ w[:, channel].astype(np.float64))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_it_arrives_at_the_least_squares_solution(seed):
    w, start, h = problem(seed)
    best = exact(w, start, h)
    found = refit(w, start, h, 100)
    assert loss(w, found, h) <= loss(w, best, h) * 1.001
    np.testing.assert_allclose(found, best, rtol=0, atol=2e-2)


@pytest.mark.parametrize("seed", range(4))
def test_every_step_lowers_the_error_and_zeros_stay(seed):
    w, start, h = problem(seed)
    losses = [loss(w, refit(w, start, h, steps), h) for steps in range(10)]
    assert losses[0] == loss(w, start, h)
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[9] < 1.2 * loss(w, exact(w, start, h), h) < 0.7 * losses[0]
    np.testing.assert_array_equal(refit(w, start, h, 9)[start == 0], 0)


def test_channels_that_have_nothing_to_gain_stay():
    w, start, h = problem(0)
    start[:, 3] = 0
    w[:, 5] = start[:, 5]
    found = refit(w, start, h, 30)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 3], 0)
    np.testing.assert_allclose(found[:, 5], w[:, 5], atol=1e-6)
