"""Normalisations of a graph, in one node or taken apart by an exporter: found once, for all who ask.

    x -> ReduceMean -> Sub -> square -> ReduceMean -> + eps -> Sqrt -> Div -> * gamma -> + beta

    core      the square and its mean or sum, what is squared, and the way down to the quotient: RMS norms and lengths
              of vectors have it, too. Its squares overflow FP16 (`graph.fp16.policy`)
    output    the quotient after products and sums with constants: where activation maps are taken (`norm_outputs`)
    whole     all of it is one LayerNormalization (`LayerNorm`), or why not. `fuse` puts that node there: it computes in
              FP32 inside (stash_type), and TensorRT has a kernel for it. With Casts around the parts onnxruntime 1.31
              fuses them, finds float32 and float16 on one node, and refuses its own work

Source: ONNX LayerNormalization-17, whose function body is this chain. Limits: a batch normalisation that was folded
into its convolution is none; of one node: trailing axes, constant gamma and beta.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.edits import Names, unlink
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import NORMS
from gpusq_onnx.graph.shapes import Shapes

_TO_QUOTIENT = frozenset("Add Max Clip Sqrt Reciprocal Pow Div Mul".split())


@dataclass(frozen=True)
class Decomposed:
    """The core of a normalisation in parts.

    Attributes:
        square, mean: the square of a tensor, and its mean or sum over axes.
        above: the difference from a mean that is squared, and what makes the mean; empty where x itself is squared.
        below: epsilon, root and quotient, each the only reader of the one before.
    """

    square: gs.Node
    mean: gs.Node
    above: tuple[gs.Node, ...]
    below: tuple[gs.Node, ...]

    @property
    def core(self) -> tuple[gs.Node, ...]:
        """All nodes from the difference to the quotient."""
        return (*self.above, self.square, self.mean, *self.below)

    @property
    def output(self) -> gs.Tensor | None:
        """What the quotient is after constant factors and sums; None where no mean of squares divides anything."""
        if self.mean.op != "ReduceMean" or not any(node.op == "Sqrt" for node in self.below):
            return None
        last = self.below[-1]
        if last.op == "Div" and isinstance(last.inputs[0], gs.Constant):  # 1 / root, a factor of what is normalised
            last = _reader(last, "Mul") or last
        if last.op not in ("Div", "Mul"):
            return None
        while (after := _only_reader(last)) is not None and after.op in ("Mul", "Add") and _constant(after) is not None:
            last = after
        return last.outputs[0]


@dataclass(frozen=True)
class LayerNorm:
    """A LayerNormalization in parts.

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


def norm_outputs(model: Model) -> list[str]:
    """The names of what normalisations give, in graph order."""
    found = []
    for node in model.graph.nodes:
        core = _core(node)
        tensor = node.outputs[0] if node.op in NORMS else core.output if core is not None else None
        if tensor is not None:
            found.append(str(tensor.name))
    return found


def decomposed(nodes: Iterable[gs.Node]) -> Iterator[Decomposed]:
    """The cores of normalisations in parts whose mean is one of `nodes`, in their order."""
    return (core for core in map(_core, nodes) if core is not None)


def layer_norms(model: Model, shapes: Shapes) -> tuple[list[LayerNorm], dict[int, str]]:
    """The LayerNormalizations in parts whose inner tensors nobody else reads; by node id, why other cores are none."""
    outputs = {tensor.name for tensor in model.graph.outputs}
    found, refused = [], dict[int, str]()
    for core in decomposed(model.graph.nodes):
        whole = _whole(core, shapes, outputs)
        if isinstance(whole, LayerNorm):
            found.append(whole)
        else:
            refused |= dict.fromkeys(map(id, core.core), whole)
    return found, refused


def fuse(model: Model, parts: LayerNorm) -> None:
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
    copies = {
        id(node): node for part in parts.nodes for tensor in part.inputs for node in tensor.inputs if _copies(node)
    }
    for node in parts.nodes:
        unlink(node)
    ends = set(map(id, model.graph.outputs))
    unread = [c for c in copies.values() if not c.outputs[0].outputs and id(c.outputs[0]) not in ends]
    for node in unread:
        unlink(node)
    made = gs.Node("LayerNormalization", last.name, attributes, inputs, [output])
    if hasattr(last, "origin"):
        made.origin = last.origin
    model.graph.nodes[position] = made
    gone = {id(node) for node in (*parts.nodes, *unread)}
    model.graph.nodes[:] = [node for node in model.graph.nodes if id(node) not in gone]


def _core(mean: gs.Node) -> Decomposed | None:
    square = _maker(mean.inputs[0]) if mean.op in ("ReduceMean", "ReduceSum") else None
    if square is None or not _squares(square):
        return None
    above: list[gs.Node] = []
    for centred in square.inputs[0].inputs:
        if centred.op == "Sub":
            above += [centred, *(node for t in centred.inputs for node in t.inputs if node.op == "ReduceMean")]
    below: list[gs.Node] = []
    step = _only_reader(mean)
    while step is not None and step.op in _TO_QUOTIENT:
        below.append(step)
        step = _only_reader(step) if step.op not in ("Div", "Mul") else None
    return Decomposed(square, mean, tuple(above), tuple(below))


def _whole(core: Decomposed, shapes: Shapes, outputs: set[str]) -> LayerNorm | str:
    """The LayerNormalization around a core, or what is not as in one."""
    if len(core.above) != 2:
        return "what is squared is no difference from a mean"
    sub, average = core.above
    x = sub.inputs[0]
    axes = _trailing(core.mean, x, shapes)
    if sub.inputs[1] is not average.outputs[0] or average.inputs[0] is not x:
        return "the mean is of another tensor"
    if core.mean.op != "ReduceMean" or not axes or _trailing(average, x, shapes) != axes:
        return "the means are not over the same trailing axes"
    if [node.op for node in core.below] != ["Add", "Sqrt", "Div"]:
        return "no Add, Sqrt and Div follow the mean of squares, with no other reader between"
    add, root, quotient = core.below
    scaled = _reader(quotient, "Mul")
    moved = _reader(scaled, "Add")
    epsilon, gamma, beta = _constant(add), _constant(scaled), _constant(moved)
    if scaled is None or moved is None or epsilon is None or gamma is None or beta is None:
        return "epsilon, the factor or what is added is no constant"
    centred = _maker(quotient.inputs[0])
    if quotient.inputs[1] is not root.outputs[0] or centred is None or not _same_difference(centred, sub):
        return "what is divided is not what is squared"
    if values_of(epsilon).size != 1 or not all(_along(constant, x, axes, shapes) for constant in (gamma, beta)):
        return "the constants do not fit the axes"
    extra = () if centred is sub else (centred,)
    nodes = (average, sub, *extra, core.square, core.mean, add, root, quotient, scaled, moved)
    inside = {id(node) for node in nodes}
    for tensor in (tensor for node in nodes[:-1] for tensor in node.outputs):
        if tensor.name in outputs or any(id(reader) not in inside for reader in tensor.outputs):
            return f"{tensor.name!r} is read elsewhere"
    return LayerNorm(nodes, x, gamma, beta, axes, float(values_of(epsilon).reshape(())))


def _same_difference(one: gs.Node, other: gs.Node) -> bool:
    """Whether two nodes subtract the same: exporters write x - mean once or twice."""
    return one is other or (one.op == other.op and all(a is b for a, b in zip(one.inputs, other.inputs, strict=True)))


def _squares(node: gs.Node) -> bool:
    """Whether a node multiplies a tensor with itself."""
    if node.op == "Pow":
        exponent = _stored(node.inputs[1])
        return exponent is not None and bool(np.all(values_of(exponent) == 2))
    return bool(node.op == "Mul" and node.inputs[0] is node.inputs[1])


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def _only_reader(node: gs.Node) -> gs.Node | None:
    readers = node.outputs[0].outputs
    return readers[0] if len(readers) == 1 else None


def _reader(node: gs.Node | None, op: str) -> gs.Node | None:
    """The one node that reads a node's output, if it is an `op`."""
    reader = _only_reader(node) if node is not None else None
    return reader if reader is not None and reader.op == op else None


def _copies(node: gs.Node) -> bool:
    """Whether a node gives a constant under another name."""
    return bool(node.op == "Identity") and isinstance(node.inputs[0], gs.Constant)


def _constant(node: gs.Node | None) -> gs.Constant | None:
    """The first constant that a node reads."""
    found = (_stored(tensor) for tensor in (node.inputs if node is not None else ()))
    return next((constant for constant in found if constant is not None), None)


def _stored(tensor: gs.Tensor) -> gs.Constant | None:
    """The constant that a tensor is, if through Identity: exporters store equal ones once."""
    maker = _maker(tensor)
    found = maker.inputs[0] if maker is not None and _copies(maker) else tensor
    return found if isinstance(found, gs.Constant) else None


def _trailing(node: gs.Node, x: gs.Tensor, shapes: Shapes) -> int:
    """How many trailing axes a ReduceMean reduces; 0 where it does something else."""
    given = _stored(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None or not node.attrs.get("keepdims", 1):
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
