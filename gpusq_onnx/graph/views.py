"""From how an exporter stored a weight to `w[out, k]`, and back.

A Linear's or Conv's weight is seen by everyone else as a matrix w[out, k]: one row an output channel, k the reduction
axis. In the file it may be [K, N] (MatMul), [N, K] (Gemm transB), a four-dimensional kernel, transposed by a node, cut
by a Split, or quantised. A `View` is the chain of such steps from the stored array to w[out, k]; each step has an
inverse.

Conv kernels [O, C, R, S] become [O, R*S*C]: groups of four along k then run along C at each (r, s), as TensorRT wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class ViewStep(Protocol):
    """One reversible look at an array."""

    def forward(self, stored: Array) -> Array:
        """From the stored side to the reader's side."""
        ...

    def backward(self, seen: Array, stored: Array) -> Array:
        """From the reader's side back; `stored` is the array before the change, for parts that are not seen."""
        ...

    def stored_axis(self, axis: int) -> int:
        """The stored array's axis that the reader's `axis` is (-1: spread over several)."""
        ...


@dataclass(frozen=True)
class Transpose:
    """Transpose by `perm`."""

    perm: tuple[int, ...]

    def forward(self, stored: Array) -> Array:
        return stored.transpose(self.perm)

    def backward(self, seen: Array, stored: Array) -> Array:
        return seen.transpose(np.argsort(self.perm))

    def stored_axis(self, axis: int) -> int:
        return self.perm[axis]


@dataclass(frozen=True)
class Cut:
    """The slice [start, stop) along one axis (an output of Split, or a Slice)."""

    axis: int
    start: int
    stop: int

    def _index(self, array: Array) -> tuple[slice, ...]:
        return tuple(slice(self.start, self.stop) if a == self.axis else slice(None) for a in range(array.ndim))

    def forward(self, stored: Array) -> Array:
        return stored[self._index(stored)]

    def backward(self, seen: Array, stored: Array) -> Array:
        whole = stored.copy()
        whole[self._index(whole)] = seen
        return whole

    def stored_axis(self, axis: int) -> int:
        return axis


@dataclass(frozen=True)
class Squeeze:
    """Drop axes of length one (sorted, counted from the front): a weight stored as [1, K, N]."""

    axes: tuple[int, ...]

    def forward(self, stored: Array) -> Array:
        return np.squeeze(stored, self.axes)

    def backward(self, seen: Array, stored: Array) -> Array:
        return np.expand_dims(seen, self.axes)

    def stored_axis(self, axis: int) -> int:
        for dropped in self.axes:
            axis += dropped <= axis
        return axis


@dataclass(frozen=True)
class Kernel:
    """A Conv kernel [O, C, *spatial] as [O, prod(spatial) * C]."""

    shape: tuple[int, ...]

    def forward(self, stored: Array) -> Array:
        return np.moveaxis(stored, 1, -1).reshape(self.shape[0], -1)

    def backward(self, seen: Array, stored: Array) -> Array:
        out, channels, *spatial = self.shape
        return np.ascontiguousarray(np.moveaxis(seen.reshape(out, *spatial, channels), -1, 1))

    def stored_axis(self, axis: int) -> int:
        return axis  # out is 0; the groups of four run along the channels, axis 1


@dataclass(frozen=True)
class TransposedKernel:
    """A ConvTranspose kernel [C, O, *spatial] as [O, prod(spatial) * C]."""

    shape: tuple[int, ...]

    def forward(self, stored: Array) -> Array:
        return np.moveaxis(stored, 0, -1).reshape(self.shape[1], -1)

    def backward(self, seen: Array, stored: Array) -> Array:
        channels, out, *spatial = self.shape
        return np.ascontiguousarray(np.moveaxis(seen.reshape(out, *spatial, channels), -1, 0))

    def stored_axis(self, axis: int) -> int:
        return 1 - axis


@dataclass(frozen=True)
class View:
    """The steps from the stored array to w[out, k], first step first."""

    steps: tuple[ViewStep, ...] = ()

    def then(self, *steps: ViewStep) -> View:
        """This view followed by more steps; transposes in a row become one, or none, so that equal views are equal."""
        merged: list[ViewStep] = list(self.steps)
        for step in steps:
            last = merged[-1] if merged else None
            if isinstance(step, Transpose) and isinstance(last, Transpose):
                merged.pop()
                step = Transpose(tuple(last.perm[axis] for axis in step.perm))
            if not (isinstance(step, Transpose) and step.perm == tuple(range(len(step.perm)))):
                merged.append(step)
        return View(tuple(merged))

    def read(self, stored: Array) -> Array:
        """w[out, k]; shares memory with `stored` wherever numpy can."""
        for step in self.steps:
            stored = step.forward(stored)
        return stored

    def write(self, seen: Array, stored: Array) -> Array:
        """The stored array with w[out, k] = `seen`; `stored` itself is not changed."""
        befores = []
        for step in self.steps:
            befores.append(stored)
            stored = step.forward(stored)
        for step, before in zip(reversed(self.steps), reversed(befores), strict=True):
            seen = step.backward(seen, before)
        return seen

    def cuts(self) -> list[tuple[int, Cut]]:
        """Every cut, with the stored array's axis that it cuts."""
        steps = enumerate(self.steps)
        return [(View(self.steps[:i]).stored_axis(step.axis), step) for i, step in steps if isinstance(step, Cut)]

    def stored_axis(self, axis: int) -> int:
        """The stored array's axis of `out` (0) or of k (1)."""
        for step in reversed(self.steps):
            axis = step.stored_axis(axis)
        return axis

    def shape(self, stored: Sequence[int]) -> tuple[int, int]:
        """(out, k) of a stored array of this shape."""
        out, k = self.read(np.broadcast_to(np.zeros((), np.int8), tuple(stored))).shape
        return out, k
