"""Weights of the critical feature maps in the QAT loss, from how far pruning moved each map.

    D_i             L_feat_i between the dense and the sparse model, over at least 1024 images (or all there are)
    inverse         w_i = n (1 / (D_i + eps)) / sum_j 1 / (D_j + eps)      large distance, small weight; mean 1
    raw-inverse     w_i = 1 / (D_i + eps)                                  the same without the normalisation
    uniform         raw-inverse's total, spread evenly                     is it the total or the shares?
    proportional    w_i = n D_i / sum_j D_j                                the opposite order; mean 1
    shuffled        inverse's values on other maps                         is it the values or their places?
    none            w_i = 1

Source: GPUSQ-ViT section 3.3 (inverse); docs/method.md, "Losses" (mean 1 and the arms: ours). Limits: D of all zero
(nothing was pruned) gives every map the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpusq_onnx.learn.settings import Factors

EPS = 1e-8


def weight_factors(distances: Sequence[float], arm: Factors, seed: int = 0) -> list[float]:
    """w_i of each map from its D_i >= 0.

    Raises:
        ValueError: a distance that is negative or not finite.
    """
    d = np.asarray(distances, np.float64)
    if not (np.isfinite(d).all() and (d >= 0).all()):
        raise ValueError(f"distances must be finite and >= 0; found {d.tolist()}")
    n = len(d)
    if arm == "none" or n == 0 or not d.any():
        return [1.0] * n
    inverse = 1 / (d + EPS)
    if arm == "raw-inverse":
        w = inverse
    elif arm == "uniform":
        w = np.full(n, inverse.mean())
    elif arm == "proportional":
        w = n * d / d.sum()
    else:
        w = n * inverse / inverse.sum()
        if arm == "shuffled" and n > 1:
            w = w[_derangement(n, seed)]
    return [float(value) for value in w]


def _derangement(n: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A permutation of 0..n-1, chosen by the seed, that leaves nothing in its place."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        if (order != np.arange(n)).all():
            return order
