"""Sparsity patterns along the reduction axis of w[out, k]: which elements of each group may stay.

    N:M         at most N non-zeros in each M consecutive elements              2:4 for FP16, INT8 and FP8
    4:8 pairs   of the four pairs in each 8, at least two are all zero          INT4 (Ampere, Ada), FP4 (Blackwell)

Groups are aligned: elements 0..M-1, M..2M-1, and so on. A mask keeps the elements of largest score; of equal scores the
lower index stays, so that the same weights always give the same mask.

Source: GPUSQ-ViT (arXiv 2305.10727), section 3.1. Limits: k must be a multiple of the group; M <= 64.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UsageError

Mask = NDArray[np.bool_]
Block = tuple[slice, slice]

BLOCK_ELEMENTS = 1 << 17  # a block and its temporaries stay in a core's L2 cache


class Pattern(ABC):
    """A rule about each group of consecutive elements along k."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The spelling that `parse_pattern` reads."""

    @property
    @abstractmethod
    def group(self) -> int:
        """Number of consecutive elements along k that one decision covers."""

    @abstractmethod
    def _select(self, score: NDArray[np.floating[Any]], keep: Mask) -> None:
        """Write into keep[out, k] which elements of score[out, k] stay."""

    @abstractmethod
    def _count_broken(self, nonzero: Mask) -> int:
        """Number of groups of nonzero[out, k] that break the rule."""

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
        """Whether every group of w[out, k] obeys the rule. Raises as `mask`."""
        return self.violations(w) == 0


@dataclass(frozen=True)
class NM(Pattern):
    """At most n non-zeros in each m consecutive elements."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m <= 64:
            raise ValueError(f"N:M needs 1 <= N < M <= 64; found {self.n}:{self.m}")

    @property
    def name(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def group(self) -> int:
        return self.m

    def _select(self, score: NDArray[np.floating[Any]], keep: Mask) -> None:
        # An element's rank is the number of elements that beat it. Counting needs m(m-1)/2 vectorised comparisons and
        # no sort: 6 for 2:4. The later element wins only if it is strictly larger: a tie goes to the lower index.
        lanes = [score[:, i :: self.m].copy(order="K") for i in range(self.m)]
        rank = [np.full_like(lane, i, dtype=np.uint8) for i, lane in enumerate(lanes)]
        for j in range(1, self.m):
            for i in range(j):
                later_wins = (lanes[j] > lanes[i]).view(np.uint8)
                rank[i] += later_wins
                rank[j] -= later_wins
        for i in range(self.m):
            np.less(rank[i], self.n, out=keep[:, i :: self.m])

    def _count_broken(self, nonzero: Mask) -> int:
        lanes = nonzero.view(np.uint8)
        count = lanes[:, 0 :: self.m].copy(order="K")
        for i in range(1, self.m):
            count += lanes[:, i :: self.m]
        return int(np.count_nonzero(count > self.n))


@dataclass(frozen=True)
class PairWise48(Pattern):
    """Of the four pairs in each 8 consecutive elements, at least two are all zero; the pair of largest norm stays."""

    @property
    def name(self) -> str:
        return "4:8pair"

    @property
    def group(self) -> int:
        return 8

    def _select(self, score: NDArray[np.floating[Any]], keep: Mask) -> None:
        pairs = np.empty_like(keep[:, 0::2])
        _PAIRS._select(np.hypot(score[:, 0::2], score[:, 1::2]), pairs)
        keep[:, 0::2] = pairs
        keep[:, 1::2] = pairs

    def _count_broken(self, nonzero: Mask) -> int:
        return _PAIRS._count_broken(nonzero[:, 0::2] | nonzero[:, 1::2])


_PAIRS = NM(2, 4)


def parse_pattern(text: str) -> Pattern:
    """The pattern written as "N:M" or "4:8pair".

    Raises:
        UsageError: any other text, or N and M outside 1 <= N < M <= 64.
    """
    if text == PairWise48().name:
        return PairWise48()
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", text)
    if match and 1 <= int(match[1]) < int(match[2]) <= 64:
        return NM(int(match[1]), int(match[2]))
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


def widened(x: NDArray[Any]) -> NDArray[Any]:
    """`x` as float32, or float64 where float32 does not hold its values: float16 and bfloat16 arithmetic is slow in
    numpy, and |int8| overflows. No copy when there is nothing to do."""
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)
