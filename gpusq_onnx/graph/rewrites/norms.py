"""LayerNorms that an exporter took apart, and the one LayerNormalization node that they are.

    x -> ReduceMean -> Sub -> Pow 2 -> ReduceMean -> + eps -> Sqrt -> Div -> * gamma -> + beta

In FP16 the squares overflow; with Casts around the parts onnxruntime 1.31 fuses them, finds float32 and float16 on one
node, and refuses its own work. The one node computes in FP32 inside (stash_type), and TensorRT has a kernel for it.

Source: ONNX LayerNormalization-17, whose function body is this chain. Limits: trailing axes, constant gamma and beta.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.edits import unlink
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.naming import Names
from gpusq_onnx.graph.shapes import Shapes


@dataclass(frozen=True)
class Parts:
    """One LayerNorm in parts.

    Attributes:
        nodes: all of them, the last makes the result.
        x: what is normalised.
        gamma, beta: constants, in the shape that they are stored in.
        axes: how many trailing axes are normalised.
        epsilon: below the root.
    """

    nodes: tuple[gs.Node, ...]
    x: gs.Tensor
    gamma: gs.Constant
    beta: gs.Constant
    axes: int
    epsilon: float

    @property
    def output(self) -> gs.Tensor:
        """The result."""
        return self.nodes[-1].outputs[0]


def find_parts(model: Model, shapes: Shapes) -> list[Parts]:
    """Every LayerNorm in parts whose inner tensors nobody else reads."""
    outputs = {tensor.name for tensor in model.graph.outputs}
    found = (_match(node, shapes) for node in model.graph.nodes if node.op == "ReduceMean")
    return [parts for parts in found if parts is not None and _private(parts, outputs)]


def fuse(model: Model, parts: Parts) -> None:
    """Put one LayerNormalization in the place of the parts."""
    names = Names(model)
    last, output = parts.nodes[-1], parts.output
    inputs = [parts.x]
    for constant in (parts.gamma, parts.beta):
        shape = tuple(constant.shape)[-parts.axes :]
        if tuple(constant.shape) != shape:
            constant = gs.Constant(names.fresh(f"{constant.name}_trailing"), values_of(constant).reshape(shape))
        inputs.append(constant)
    attributes = {"axis": -parts.axes, "epsilon": parts.epsilon}
    position = next(index for index, node in enumerate(model.graph.nodes) if node is last)
    for node in parts.nodes:
        unlink(node)
    made = gs.Node("LayerNormalization", last.name, attributes, inputs, [output])
    if hasattr(last, "origin"):
        made.origin = last.origin
    model.graph.nodes[position] = made
    gone = {id(node) for node in parts.nodes}
    model.graph.nodes[:] = [node for node in model.graph.nodes if id(node) not in gone]


def _match(variance: gs.Node, shapes: Shapes) -> Parts | None:
    square = _maker(variance.inputs[0])
    sub = _maker(square.inputs[0]) if square is not None and squares(square) else None
    if square is None or sub is None or sub.op != "Sub":
        return None
    x, mean = sub.inputs[0], _maker(sub.inputs[1])
    axes = _trailing(variance, x, shapes)
    if (
        mean is None
        or mean.op != "ReduceMean"
        or mean.inputs[0] is not x
        or not axes
        or _trailing(mean, x, shapes) != axes
    ):
        return None
    add = _reader(variance, "Add")
    root = _reader(add, "Sqrt")
    quotient = _reader(root, "Div")
    scaled = _reader(quotient, "Mul")
    moved = _reader(scaled, "Add")
    if add is None or root is None or quotient is None or scaled is None or moved is None:
        return None
    epsilon, gamma, beta = (_constant(node) for node in (add, scaled, moved))
    centred = _maker(quotient.inputs[0])
    if quotient.inputs[1] is not root.outputs[0] or epsilon is None or gamma is None or beta is None or centred is None:
        return None
    if centred is not sub and not (
        centred.op == "Sub" and centred.inputs[0] is x and _maker(centred.inputs[1]) is mean
    ):
        return None
    if values_of(epsilon).size != 1 or not all(_along(constant, x, axes, shapes) for constant in (gamma, beta)):
        return None
    extra = () if centred is sub else (centred,)
    nodes = (mean, sub, *extra, square, variance, add, root, quotient, scaled, moved)
    return Parts(nodes, x, gamma, beta, axes, float(values_of(epsilon).reshape(())))


def squares(node: gs.Node) -> bool:
    """Whether a node multiplies a tensor with itself."""
    if node.op == "Pow":
        exponent = node.inputs[1]
        return isinstance(exponent, gs.Constant) and bool(np.all(values_of(exponent) == 2))
    return bool(node.op == "Mul" and node.inputs[0] is node.inputs[1])


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def _reader(node: gs.Node | None, op: str) -> gs.Node | None:
    """The one node that reads a node's output, if it is an `op`."""
    readers = node.outputs[0].outputs if node is not None else []
    return readers[0] if len(readers) == 1 and readers[0].op == op else None


def _constant(node: gs.Node) -> gs.Constant | None:
    return next((tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)), None)


def _trailing(node: gs.Node, x: gs.Tensor, shapes: Shapes) -> int:
    """How many trailing axes a ReduceMean reduces; 0 where it does something else."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if not isinstance(given, gs.Constant) or not node.attrs.get("keepdims", 1):
        return 0
    rank = len(shapes.get(x.name, ()))
    axes = sorted(axis - rank if axis >= 0 and rank else axis for axis in values_of(given).reshape(-1).tolist())
    return len(axes) if axes == list(range(-len(axes), 0)) else 0


def _along(constant: gs.Constant, x: gs.Tensor, axes: int, shapes: Shapes) -> bool:
    """Whether a constant has one value for each element of the trailing axes."""
    shape, known = tuple(constant.shape), shapes.get(x.name, ())[-axes:]
    if len(shape) < axes or any(n != 1 for n in shape[:-axes]):
        return False
    pairs = zip(shape[-axes:], known if len(known) == axes else [None] * axes, strict=True)
    return all(n == dim if isinstance(dim, int) else n > 1 for n, dim in pairs)


def _private(parts: Parts, outputs: set[str]) -> bool:
    inside = {id(node) for node in parts.nodes}
    made = [tensor for node in parts.nodes[:-1] for tensor in node.outputs]
    return all(tensor.name not in outputs and all(id(r) in inside for r in tensor.outputs) for tensor in made)
