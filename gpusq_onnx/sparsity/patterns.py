"""Sparsity patterns as rows of one table: which elements of each group along the reduction axis of w[out, k] may stay.

    N:M         at most N non-zeros in each M consecutive elements              2:4 for FP16, INT8 and FP8
    N:Mpair     the same of whole pairs: 4:8pair leaves two of the four pairs in each 8      INT4 (Ampere, Ada), FP4

A pattern is `keep` of each `of` units of `unit` elements. Groups are aligned: elements 0..M-1, M..2M-1, and so on. A
mask keeps the units of largest score; of equal scores the lower index stays, so that the same weights always give the
same mask. A new pattern is one row of `PATTERNS`: pruning, inspection, cost and packing read the table.

Source: GPUSQ-ViT (arXiv 2305.10727), section 3.1. Limits: k must be a multiple of the group; at most 64 units in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UsageError
from gpusq_onnx.sums import widened

Mask = NDArray[np.bool_]
Block = tuple[slice, slice]

BLOCK_ELEMENTS = 1 << 17  # a block and its temporaries stay in a core's L2 cache
MOST_UNITS = 64
USEFUL_SIDE = 256  # TensorRT's sparse kernels rarely win on matrices with a side below this (docs/tensorrt.md)


@dataclass(frozen=True)
class Pattern:
    """At most `keep` of each `of` consecutive units along k are not zero; a unit is `unit` elements.

    Attributes:
        keep, of: units.
        unit: elements that are kept or dropped together: 1, or 2 for pairs.
    """

    keep: int
    of: int
    unit: int = 1

    def __post_init__(self) -> None:
        if not (1 <= self.keep < self.of <= MOST_UNITS and self.unit in (1, 2)):
            raise ValueError(f"N:M needs 1 <= N < M <= {MOST_UNITS}; found {self.keep}:{self.of}, units of {self.unit}")

    @property
    def name(self) -> str:
        """The spelling that `parse_pattern` reads."""
        return f"{self.keep * self.unit}:{self.group}{'pair' if self.unit == 2 else ''}"

    @property
    def group(self) -> int:
        """Number of consecutive elements along k that one decision covers."""
        return self.of * self.unit

    @property
    def density(self) -> float:
        """Share of the elements that stay."""
        return self.keep / self.of

    @property
    def place_bits(self) -> int:
        """Bits that say where a kept unit was."""
        return (self.of - 1).bit_length()

    @property
    def metadata_bits(self) -> float:
        """Bits a weight that say where the kept units were: 1 for 2:4, 0.5 for 4:8pair."""
        return self.keep * self.place_bits / self.group

    def implies(self, other: Pattern) -> bool:
        """Whether every matrix of this pattern follows the `other`, too: 1:4, 2:16 imply 2:4; 4:8pair does not."""
        most = 0
        for start in range(0, self.group * other.group, other.group):  # every way in which their groups can lie
            units = 0
            first, last = start // self.group, (start + other.group - 1) // self.group
            for number in range(first, last + 1):
                low, high = max(start, number * self.group), min(start + other.group, (number + 1) * self.group)
                mine = -(-high // self.unit) - low // self.unit
                theirs = -(-high // other.unit) - low // other.unit
                units += min(theirs, min(self.keep, mine) * max(1, self.unit // other.unit))
            most = max(most, units)
        return most <= other.keep

    def mask(self, score: NDArray[Any]) -> Mask:
        """Which elements stay.

        Args:
            score: [out, k], any real dtype and memory order, finite, >= 0: the root of the squared error that removing
                the element costs, so |w| for plain magnitude.

        Returns:
            bool [out, k] in the memory order of `score`; True stays.

        Raises:
            ValueError: not 2-D, k not a multiple of the group, or a score that is not finite.
        """
        keep = np.empty_like(score, dtype=np.bool_)
        for block in blocks(score, self):
            part = widened(score[block])
            if not np.isfinite(part).all():
                raise ValueError(f"scores for {self.name} must be finite; found NaN or infinity in shape {score.shape}")
            self._select(part, keep[block])
        return keep

    def violations(self, w: NDArray[Any]) -> int:
        """Number of groups of w[out, k] (any dtype, integer codes too) that break the rule. Raises as `mask`."""
        return sum(self._count_broken(w[block] != 0) for block in blocks(w, self))

    def holds(self, w: NDArray[Any]) -> bool:
        """Whether every group of w[out, k] obeys the rule; a dense weight's first rows tell. Raises as `mask`."""
        return not any(self._count_broken(w[block] != 0) for block in blocks(w, self))

    def fits(self, k: int) -> bool:
        """Whether groups divide a reduction of length k."""
        return k % self.group == 0

    def _select(self, score: NDArray[np.floating[Any]], keep: Mask) -> None:
        """Write into keep[out, k] which elements of score[out, k] stay."""
        if self.unit == 2:
            pairs = np.empty_like(keep[:, 0::2])
            Pattern(self.keep, self.of)._select(np.hypot(score[:, 0::2], score[:, 1::2]), pairs)
            keep[:, 0::2] = pairs
            keep[:, 1::2] = pairs
            return
        # An element's rank is the number of elements that beat it. Counting needs m(m-1)/2 vectorised comparisons and
        # no sort: 6 for 2:4. The later element wins only if it is strictly larger: a tie goes to the lower index.
        lanes = [score[:, i :: self.of].copy(order="K") for i in range(self.of)]
        rank = [np.full_like(lane, i, dtype=np.uint8) for i, lane in enumerate(lanes)]
        for j in range(1, self.of):
            for i in range(j):
                later_wins = (lanes[j] > lanes[i]).view(np.uint8)
                rank[i] += later_wins
                rank[j] -= later_wins
        for i in range(self.of):
            np.less(rank[i], self.keep, out=keep[:, i :: self.of])

    def _count_broken(self, nonzero: Mask) -> int:
        """Number of groups of nonzero[out, k] that break the rule."""
        if self.unit == 2:
            return Pattern(self.keep, self.of)._count_broken(nonzero[:, 0::2] | nonzero[:, 1::2])
        lanes = nonzero.view(np.uint8)
        count = lanes[:, 0 :: self.of].copy(order="K")
        for i in range(1, self.of):
            count += lanes[:, i :: self.of]
        return int(np.count_nonzero(count > self.keep))


TWO_FOUR = Pattern(2, 4)
PAIRS_48 = Pattern(2, 4, unit=2)

_PATTERNS = {row.name: row for row in (Pattern(2, 16), Pattern(1, 4), Pattern(2, 8), PAIRS_48, TWO_FOUR, Pattern(4, 8))}
PATTERNS: Mapping[str, Pattern] = MappingProxyType(_PATTERNS)
"""What is looked for in weights."""


def patterns_of(w: NDArray[Any], length: int | None = None) -> tuple[Pattern, ...]:
    """The rows of `PATTERNS` that w[out, k] follows, what leaves least first; none: dense.

    Args:
        length: along which groups run, where it is less than k (the channels of a Conv at each kernel position).
    """
    length = w.shape[1] if length is None else length
    few = w[:_FIRST_ROWS]  # most dense matrices are recognised by their first rows
    found: list[Pattern] = []
    for row in sorted(PATTERNS.values(), key=lambda row: (row.density, row.metadata_bits)):
        if row.fits(length) and (any(known.implies(row) for known in found) or (row.holds(few) and row.holds(w))):
            found.append(row)
    return tuple(found)


_FIRST_ROWS = 4


def parse_pattern(text: str) -> Pattern:
    """The pattern written as "N:M" or "N:Mpair".

    Raises:
        UsageError: any other text, or N and M outside 1 <= N < M <= 64, odd for pairs.
    """
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})(pair)?", text)
    if match:
        n, m, unit = int(match[1]), int(match[2]), 2 if match[3] else 1
        if n % unit == m % unit == 0 and 1 <= n < m <= MOST_UNITS * unit:
            return Pattern(n // unit, m // unit, unit)
    raise UsageError(
        f"unknown sparsity pattern {text!r}",
        expected='"N:M" with 1 <= N < M <= 64 (2:4, 1:4, 2:16), or "4:8pair"',
        hint="TensorRT runs 2:4, and patterns that imply it, on sparse tensor cores",
    )


def blocks(w: NDArray[Any], pattern: Pattern) -> Iterator[Block]:
    """Slices that cover w[out, k] in cache-sized blocks of whole groups, along the slower axis of its memory.

    Raises:
        ValueError: not 2-D, or k not a multiple of the group.
    """
    if w.ndim != 2:
        raise ValueError(f"a weight is w[out, k]; found shape {w.shape}")
    out, k = w.shape
    if k % pattern.group:
        raise ValueError(f"{pattern.name} needs k % {pattern.group} == 0; found w[out, k] of shape {w.shape}")
    if w.strides[0] >= w.strides[1]:
        rows = max(1, BLOCK_ELEMENTS // max(1, k))
        yield from ((slice(i, i + rows), slice(None)) for i in range(0, out, rows))
    else:
        columns = max(1, BLOCK_ELEMENTS // max(1, out) // pattern.group) * pattern.group
        yield from ((slice(None), slice(i, i + columns)) for i in range(0, k, columns))
