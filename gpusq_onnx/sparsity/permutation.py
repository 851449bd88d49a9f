"""Order input channels so that a pattern keeps the most: which channels share a group of w[out, k] can be chosen.

Elements of energy e[row, k] >= 0 (a squared weight, or what removing it costs) are kept by the pattern in each group.
Exchanging two channels s and t of different groups changes what these two groups keep. With the rest of a group fixed,
what it keeps is a constant plus max(b, x): x the energy of the channel in question, b that of the last unit that stays
if it goes (less its partner's energy, where pairs stay together). So for all pairs of channels at once

    M[s, t] = sum_rows max(b_s, x_t)           gain[s, t] = M[s, t] - M[s, s] + M[t, s] - M[t, t]

Each round makes the exchanges of largest gain, no group in two of them, until nothing is gained: first counted on a
quarter of the rows, then on all.

Source: Pool and Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021: its channel exchanges, many at a time.
Limits: a local optimum; the gains are counted on at most `ROWS` rows. Time ~ rows * k^2, memory three k x k matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.sparsity.gram import Each, one_by_one, spans
from gpusq_onnx.sparsity.patterns import Pattern

Float32 = NDArray[np.float32]
Order = NDArray[np.intp]

ROWS = 256
ROUNDS = 200
_LEAST = 1e-5  # of the energy: a round that gains less is the last
_WORTH_WHILE = 1e-4  # of the energy: an order whose first round gains less stays, to the bit
_SLOTS = 32  # channels whose gains are counted together: their part of M stays in a core's cache


def arrange(energy: NDArray[Any], pattern: Pattern, each: Each = one_by_one) -> Order:
    """The order of channels under which the pattern keeps most: channel order[p] goes to place p.

    Args:
        energy: [rows, k] >= 0, finite; k a multiple of the pattern's group.
        each: how parts of the search are worked through; the result does not depend on it.

    Raises:
        ValueError: k does not divide, or an energy that is negative or not finite.
    """
    rows, k = energy.shape
    if k % pattern.group:
        raise ValueError(f"{pattern.name} needs k % {pattern.group} == 0; found energies of shape {energy.shape}")
    chosen = energy[:: -(-rows // ROWS)] if rows else energy
    x = np.ascontiguousarray(chosen.T, np.float32)  # [k, rows]
    if not (np.isfinite(x).all() and (x >= 0).all()):
        raise ValueError(f"energies must be finite and >= 0; shape {energy.shape}")
    order: Order = np.arange(k)
    if k == pattern.group or not rows or not _worth_while(x, pattern, each):
        return order
    for step in (4, 1):
        order = order[_exchanged(np.ascontiguousarray(x[order, ::step]), pattern, each)]
    return order


def kept(energy: NDArray[Any], pattern: Pattern, order: Order | None = None) -> float:
    """The share of the energy that the pattern keeps, with channels in this order; 1.0 where there is none."""
    ordered = energy if order is None else energy[:, order]
    total = float(ordered.sum(dtype=np.float64))
    held = float(ordered[pattern.mask(np.sqrt(ordered))].sum(dtype=np.float64))
    return held / total if total else 1.0


def _worth_while(x: Float32, pattern: Pattern, each: Each) -> bool:
    sums = np.empty((len(x), len(x)), np.float32)
    _count(sums, x, np.arange(len(x)), pattern, each)
    return _exchanges(sums, pattern.group)[2] > _WORTH_WHILE * float(x.sum(dtype=np.float64))


def _exchanged(x: Float32, pattern: Pattern, each: Each) -> Order:
    """The order of x[k, rows] after all exchanges that gain."""
    order: Order = np.arange(len(x))
    sums = np.empty((len(x), len(x)), np.float32)
    stale, least = order, _LEAST * float(x.sum(dtype=np.float64))
    for _ in range(ROUNDS):
        _count(sums, x, stale, pattern, each)
        first, second, gained = _exchanges(sums, pattern.group)
        if gained <= least:
            break
        places = np.arange(len(x))
        places[first], places[second] = second, first
        order, x, sums = order[places], x[places], sums[:, places]
        touched = np.unique(np.concatenate([first, second]) // pattern.group)
        stale = (touched[:, None] * pattern.group + np.arange(pattern.group)).ravel()
    return order


def _count(sums: Float32, x: Float32, slots: NDArray[np.intp], pattern: Pattern, each: Each) -> None:
    """Bring the rows `slots`, whole groups, of sums[k, k] (M above) up to date with x[k, rows]."""
    last, by_row = np.ascontiguousarray(_last(x[slots], pattern).T), np.ascontiguousarray(x.T)

    def count(part: slice) -> None:
        total = np.zeros((len(slots[part]), len(x)), np.float32)
        larger = np.empty_like(total)
        for bound, row in zip(last[:, part], by_row, strict=True):
            np.maximum(bound[:, None], row, out=larger)
            total += larger
        sums[slots[part]] = total

    each(count, spans(len(slots), _SLOTS))


def _last(x: Float32, pattern: Pattern) -> Float32:
    """b above for x[k, rows], whole groups."""
    parts = x.reshape(-1, pattern.of, pattern.unit, x.shape[1])
    units = parts.sum(axis=2)  # [groups, of, rows]
    bounds = np.empty_like(parts)
    for place in range(pattern.of):
        others = np.delete(units, place, axis=1)
        others.partition(pattern.of - 1 - pattern.keep, axis=1)
        bounds[:, place] = others[:, pattern.of - 1 - pattern.keep, None] - (units[:, place, None] - parts[:, place])
    return bounds.reshape(x.shape)


def _exchanges(sums: Float32, group: int) -> tuple[NDArray[np.intp], NDArray[np.intp], float]:
    """Exchanges that gain, no group in two of them: the places of each, and what all gain."""
    k = len(sums)
    gain = sums - np.diag(sums)[:, None]
    gain += gain.T
    groups = k // group
    between = gain.reshape(groups, group, groups, group).transpose(0, 2, 1, 3).reshape(groups, groups, -1)
    pair = between.argmax(axis=2)
    best = np.take_along_axis(between, pair[:, :, None], axis=2)[:, :, 0]
    best[np.tril_indices(groups)] = 0
    one, other = np.nonzero(best > 0)
    ranked = np.argsort(-best[one, other], kind="stable")
    free = np.ones(groups, np.bool_)
    taken = []
    for a, b in zip(one[ranked].tolist(), other[ranked].tolist(), strict=True):
        if free[a] and free[b]:
            free[a] = free[b] = False
            taken.append((a, b))
    if not taken:
        return np.empty(0, np.intp), np.empty(0, np.intp), 0.0
    a, b = np.array(taken).T
    slots = pair[a, b]
    return a * group + slots // group, b * group + slots % group, float(best[a, b].sum(dtype=np.float64))
