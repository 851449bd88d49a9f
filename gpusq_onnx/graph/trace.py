"""From an operand of a matrix product or convolution back to the initializer that it comes from, and the view between.

Followed are nodes that only lay out, retype or quantise: Transpose, Squeeze, Split, Slice, Identity, Cast,
QuantizeLinear and DequantizeLinear. A node that computes (Mul, Einsum, Reshape) ends the walk: the pass `fold` makes
initializers of what is computed from constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.model import type_name, values_of
from gpusq_onnx.graph.operators import QDQ, WEIGHTS
from gpusq_onnx.graph.views import Cut, Kernel, Squeeze, Transpose, TransposedKernel, View, ViewStep

_TRANSPARENT = QDQ | {"Identity", "Cast"}
_FOLLOWED = _TRANSPARENT | {"Transpose", "Squeeze", "Split", "Slice"}

Steps = tuple[ViewStep, ...]


@dataclass(frozen=True)
class Trace:
    """Where an operand comes from.

    Attributes:
        weight: the stored initializer.
        view: from the stored array to what the reader sees; `weight_of` ends it in w[out, k].
        trail: the nodes between, the reader's neighbour first.
        shape: of the operand as the reader sees it.
        quantised: "" (float), "qdq" (float before Q/DQ), or the type of the codes that are stored after DQ alone:
            "int8", "int4", "float8e4m3fn", ...
    """

    weight: gs.Constant
    view: View
    trail: tuple[gs.Node, ...]
    shape: tuple[int, ...]
    quantised: str


def trace(tensor: gs.Tensor) -> Trace | None:
    """The way from a tensor back to one initializer, or None where something is computed on the way."""
    path: list[tuple[gs.Node, gs.Tensor]] = []
    while not isinstance(tensor, gs.Constant):
        if len(tensor.inputs) != 1 or tensor.inputs[0].op not in _FOLLOWED:
            return None
        path.append((tensor.inputs[0], tensor))
        tensor = tensor.inputs[0].inputs[0]
    shape, view = tuple(tensor.shape), View()
    for node, made in reversed(path):
        steps = _steps(node, made, shape)
        if steps is None:
            return None
        shape, view = _seen(steps, shape), view.then(*steps)
    ops = [node.op for node, _ in path]
    stored = type_name(tensor) if "DequantizeLinear" in ops else ""
    quantised = "qdq" if "QuantizeLinear" in ops else stored
    return Trace(tensor, view, tuple(node for node, _ in path), shape, quantised)


def weight_of(node: gs.Node, operand: int) -> Trace | None:
    """The trace of an operand with its view continued to w[out, k]; None where it is no weight matrix."""
    if operand >= len(node.inputs) or operand not in WEIGHTS[node.op]:
        return None
    found = trace(node.inputs[operand])
    last = None if found is None else _last_steps(node, operand, found.shape)
    if found is None or last is None:
        return None
    return Trace(found.weight, found.view.then(*last), found.trail, found.shape, found.quantised)


def operand_view(node: gs.Node, operand: int) -> View | None:
    """From the operand as `node` reads it to w[out, k]; None where it is no weight matrix."""
    found = trace(node.inputs[operand])
    last = None if found is None else _last_steps(node, operand, found.shape)
    return None if last is None else View(last)


def view_from(start: gs.Tensor, node: gs.Node, operand: int) -> View:
    """From a tensor on the way of an operand, as `trace` follows it, to w[out, k]."""
    tensor, path = node.inputs[operand], list[tuple[gs.Node, gs.Tensor]]()
    while tensor is not start:
        path.append((tensor.inputs[0], tensor))
        tensor = tensor.inputs[0].inputs[0]
    found = trace(start)
    shape, view = () if found is None else found.shape, View()
    for after, made in reversed(path):
        steps = _steps(after, made, shape) or ()
        shape, view = _seen(steps, shape), view.then(*steps)
    return view.then(*(_last_steps(node, operand, shape) or ()))


def channel_axis(node: gs.Node, operand: gs.Tensor) -> int:
    """The axis of the output channels in the right operand of `node`, as DequantizeLinear's `axis` wants it."""
    if node.op == "MatMul":
        found = trace(operand)
        return len(found.shape) - 1 if found is not None else 1
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 1 if node.op == "ConvTranspose" else 0


def _steps(node: gs.Node, made: gs.Tensor, shape: tuple[int, ...]) -> Steps | None:
    if node.op in _TRANSPARENT:
        return ()
    if node.op == "Transpose":
        return (Transpose(tuple(node.attrs.get("perm") or range(len(shape))[::-1])),)
    if node.op == "Squeeze":
        return _squeeze(node, shape)
    return _split(node, made, shape) if node.op == "Split" else _slice(node, shape)


def _squeeze(node: gs.Node, shape: tuple[int, ...]) -> Steps | None:
    if len(node.inputs) < 2 or node.inputs[1].is_empty():
        return (Squeeze(tuple(a for a, n in enumerate(shape) if n == 1)),)
    axes = _numbers(node.inputs[1])
    return None if axes is None else (Squeeze(tuple(sorted(a % len(shape) for a in axes))),)


def _split(node: gs.Node, made: gs.Tensor, shape: tuple[int, ...]) -> Steps | None:
    axis = node.attrs.get("axis", 0) % len(shape)
    if len(node.inputs) > 1 and not node.inputs[1].is_empty():
        sizes = _numbers(node.inputs[1])
        if sizes is None:
            return None
    else:
        size = -(-shape[axis] // len(node.outputs))
        sizes = [min(size, shape[axis] - i * size) for i in range(len(node.outputs))]
    index = next(i for i, out in enumerate(node.outputs) if out is made)
    start = sum(sizes[:index])
    return (Cut(axis, start, start + sizes[index]),)


def _slice(node: gs.Node, shape: tuple[int, ...]) -> Steps | None:
    starts, ends = _numbers(node.inputs[1]), _numbers(node.inputs[2])
    axes, steps = (_numbers(t) if not t.is_empty() else [] for t in [*node.inputs[3:5], *[gs.Variable.empty()] * 2][:2])
    if starts is None or ends is None or axes is None or steps is None or any(step != 1 for step in steps):
        return None
    spans = [(a % len(shape), slice(s, e)) for a, s, e in zip(axes or range(len(starts)), starts, ends, strict=True)]
    return tuple(Cut(a, *span.indices(shape[a])[:2]) for a, span in spans)


def _numbers(tensor: gs.Tensor) -> list[int] | None:
    return [int(n) for n in np.atleast_1d(values_of(tensor))] if isinstance(tensor, gs.Constant) else None


def _last_steps(node: gs.Node, operand: int, shape: tuple[int, ...]) -> Steps | None:
    """From the operand as the node reads it to w[out, k]; None where it is no weight matrix."""
    if node.op in ("Conv", "ConvTranspose"):
        kernel = Kernel(shape) if node.op == "Conv" else TransposedKernel(shape)
        return (kernel,) if len(shape) >= 3 else None
    if node.op == "Gemm":
        return () if node.attrs.get("transB", 0) else (Transpose((1, 0)),)
    leading = len(shape) - 2
    if leading < 0 or any(n != 1 for n in shape[:leading]):
        return None  # a vector, or one matrix an image or head: not a Linear
    unbatch: Steps = (Squeeze(tuple(range(leading))),) if leading else ()
    return unbatch if operand == 0 else (*unbatch, Transpose((1, 0)))


def _seen(steps: Steps, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape after `steps`, found on an array that costs no memory."""
    shadow: NDArray[np.int8] = np.broadcast_to(np.zeros((), np.int8), shape)
    return View(steps).read(shadow).shape
