"""What a rewriting rule is: an operator, a check with its reason, and the nodes that replace the old one.

    check     is the node one that can be rewritten? Returns what `rewrite` needs, or raises Unfit with the reason.
    rewrite   writes new nodes through an `Editor`, whose last one makes the old node's output.

The rules are rows of `graph.rewrites.canonical.RULES`. Names of tensors that others read are kept, so that subgraphs,
which refer to them by name, stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import NodeProto

from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.edits import Names, position, rewire, unlink
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.shapes import Dim, Shapes, Types


class Unfit(Exception):
    """Why a node is left as it is."""


@dataclass(frozen=True)
class Known:
    """What a check may rely on beside the node: shapes for one image, types, and who depends on data."""

    shapes: Shapes
    types: Types
    flow: Dataflow

    def shape(self, tensor: gs.Tensor) -> tuple[Dim, ...]:
        """The shape of a tensor. Raises Unfit where not even the rank is known."""
        found = tuple(tensor.shape) if isinstance(tensor, gs.Constant) else self.shapes.get(tensor.name)
        if found is None:
            raise Unfit(f"the rank of {tensor.name!r} is not known before the model runs")
        return found

    def type(self, tensor: gs.Tensor) -> np.dtype[Any]:
        """The element type of a tensor. Raises Unfit where it is not known."""
        found = tensor.dtype if isinstance(tensor, gs.Constant) else self.types.get(tensor.name)
        if found is None:
            raise Unfit(f"the type of {tensor.name!r} is not known before the model runs")
        return np.dtype(found)


class Rule(NamedTuple):
    """One row: nodes of `op` become what `rewrite` makes of them; `does` says it in a word."""

    op: str
    does: str
    check: Callable[[gs.Node, Known], Any]
    rewrite: Callable[[gs.Node, Any, Editor], gs.Tensor]


class Layouts:
    """Weights laid out anew, by the old one: nodes that want the same layout of one get one constant."""

    def __init__(self) -> None:
        self._made: dict[str, list[gs.Constant]] = {}

    def of(self, weight: gs.Constant, values: NDArray[Any], fresh: Callable[[str], str]) -> gs.Constant:
        """`values`, which are those of `weight` in another layout, as a constant whose name begins with its name."""
        known = self._made.setdefault(weight.name, [])
        for made in known:
            if made.values.dtype == values.dtype and np.array_equal(made.values, values):
                return made
        stem = f"{weight.name}_matrix"
        taken = {made.name for others in self._made.values() for made in others}  # also of what no node reads, but may
        name = fresh(stem)
        while name in taken:
            name = fresh(stem)
        known.append(gs.Constant(name, np.ascontiguousarray(values)))
        return known[-1]


class Editor:
    """Writes the nodes that replace one node, `dtype` that of its first input.

    New nodes carry its module path in their name and metadata.
    """

    def __init__(self, model: Model, node: gs.Node, dtype: np.dtype[Any], layouts: Layouts) -> None:
        self.nodes: list[gs.Node] = []
        self.others: dict[int, gs.Tensor] = {}
        self.dtype = dtype
        self._model, self._node, self._layouts = model, node, layouts
        self._fresh = Names(model).fresh
        self._stem = str(node.name or node.outputs[0].name)

    def constant(self, what: str, values: NDArray[Any]) -> gs.Constant:
        """A new initializer."""
        return gs.Constant(self._fresh(f"{self._stem}_{what}"), np.ascontiguousarray(values))

    def layout_of(self, weight: gs.Constant, values: NDArray[Any]) -> gs.Constant:
        """A weight laid out anew; see `Layouts.of`."""
        return self._layouts.of(weight, values, self._fresh)

    def numbers(self, what: str, numbers: Sequence[int]) -> gs.Constant:
        """A new initializer of int64: axes or a shape."""
        return self.constant(what, np.asarray(numbers, np.int64))

    def add(self, op: str, *inputs: gs.Tensor, dtype: np.dtype[Any] | None = None, **attrs: Any) -> gs.Variable:
        """A new node; returns its output."""
        name = self._fresh(f"{self._stem}_{op}")
        made = gs.Variable(self._fresh(f"{name}_output"), dtype or self.dtype)
        node = gs.Node(op, name, attrs, list(inputs), [made])
        origin = getattr(self._node, "origin", None)
        if origin is not None:
            node.origin = NodeProto(metadata_props=origin.metadata_props)
        self.nodes.append(node)
        return made

    def also(self, output: int, made: gs.Tensor) -> None:
        """Let `made` be this output of the old node, beside the first."""
        self.others[output] = made

    def transpose(self, tensor: gs.Tensor, order: Sequence[int]) -> gs.Tensor:
        """The tensor with its axes in this order; a constant is laid out anew at once."""
        if list(order) == list(range(len(order))):
            return tensor
        if isinstance(tensor, gs.Constant):
            return self.layout_of(tensor, tensor.values.transpose(order))
        return self.add("Transpose", tensor, perm=list(order))

    def reshape(self, tensor: gs.Tensor, shape: Sequence[int]) -> gs.Tensor:
        """The tensor in another shape, where 0 keeps the axis of the same place and one -1 takes what is left."""
        return self.add("Reshape", tensor, self.numbers("shape", shape))


def replace(model: Model, node: gs.Node, rule: Rule, form: Any, dtype: np.dtype[Any], layouts: Layouts) -> None:
    """Put what `rule` makes of `node` in its place; `layouts`: of the whole run."""
    editor = Editor(model, node, dtype, layouts)
    results = {0: rule.rewrite(node, form, editor), **editor.others}
    outputs, inputs = list(node.outputs), list(node.inputs)
    place = position(model.graph.nodes, node)
    unlink(node)
    for index, made in results.items():
        output = outputs[index]
        model.typed.pop(output.name, None)  # inference knows it from now on
        maker = next((new for new in editor.nodes if any(made is tensor for tensor in new.outputs)), None)
        if maker is not None:
            rewire(made.outputs, made, output)
            maker.outputs[0] = output
        else:
            name = Names(model).fresh(f"{output.name}_Identity")
            editor.nodes.append(gs.Node("Identity", name, {}, [made], [output]))
    model.graph.nodes[place : place + 1] = editor.nodes
    _drop_unread(
        model, [*inputs, *(tensor for output in outputs for reader in output.outputs for tensor in reader.outputs)]
    )


def _drop_unread(model: Model, tensors: Sequence[gs.Tensor]) -> None:
    """Take out the nodes that make these tensors, and those before them, where nothing reads what they make."""
    kept = {id(tensor) for tensor in model.graph.outputs}
    queue, gone = list(tensors), set[int]()
    while queue:
        for maker in list(queue.pop().inputs):
            if not any(made.outputs or id(made) in kept for made in maker.outputs):
                queue += maker.inputs
                gone.add(id(maker))
                unlink(maker)
    if gone:
        model.graph.nodes[:] = [node for node in model.graph.nodes if id(node) not in gone]
