"""Constant folding: tensors that depend on initializers and on known dimensions alone become initializers.

    which   `foldable`: a walk over the graph that computes nothing; it says, too, what is left alone and why
    how     `fold`: onnx-graphsurgeon's `fold_constants`, confined to the nodes that were named; `fold_all` goes on
            while there is more

A Shape node, and a Gather or Slice of one, is a constant exactly where the dimensions that it yields are known from the
model's declared inputs. That is settled in `dimensions`: graphsurgeon 0.6.1 ignores a Shape's `start` and `end`, so
that its own shape folding makes a reshape to [2, 3, 3] of Reshape(x[2, 3], Concat(Shape(x, start=0, end=1), [3])), and
breaks torch's dynamic batches.

Left alone: Q/DQ (TensorRT wants to see them), anything random, nodes with subgraphs, other domains, types that numpy
does not have (bfloat16, FP8), graph outputs, and what would make the file larger by more than the limit: an Expand, or
a copy of a weight that others go on reading.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from gpusq_onnx.errors import InvariantError, UnsupportedModelError
from gpusq_onnx.graph.edits import unlink
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import QDQ, Is, is_standard, operators
from gpusq_onnx.graph.payload import Payload
from gpusq_onnx.graph.rewrites.dimensions import known_dimensions, measured
from gpusq_onnx.graph.shapes import Types, infer_shapes

MIB = 2**20
_KEPT = QDQ | operators(Is.RANDOM) | {"DynamicQuantizeLinear", "Constant", "Dropout"}


@dataclass(frozen=True)
class Fold:
    """One tensor that constants decide, at the edge to what they do not.

    Attributes:
        node: makes the tensor.
        name, shape: of the tensor; None is a dimension that is not known before it is computed.
        nodes: how many nodes it takes to compute it.
        refusal: why it is left alone; empty where it is folded.
        made_by: these nodes.
    """

    node: gs.Node
    name: str
    shape: tuple[int | str | None, ...]
    nodes: int
    refusal: str = ""
    made_by: tuple[gs.Node, ...] = ()


class _FoldWalk:
    """What is constant so far: for every such tensor the nodes that compute it, and the initializers."""

    def __init__(self, model: Model, limit: int) -> None:
        self.limit = limit
        self.shapes, self.types = infer_shapes(model, one_image=False)
        self.outputs = {tensor.name for tensor in model.graph.outputs}
        self.computed: dict[str, tuple[dict[int, gs.Node], dict[str, gs.Constant]]] = {}
        self.folded: dict[int, gs.Node] = {}
        self.refused: list[tuple[gs.Node, str]] = []
        for node in model.graph.nodes:
            if not _evaluable(node, self.types) or any(tensor.name in self.outputs for tensor in node.outputs):
                continue
            if all(self._constant(tensor) for tensor in node.inputs):
                self._take(node, [tensor for tensor in node.inputs if not tensor.is_empty()])
            elif known_dimensions(node, self.shapes) is not None:
                self._take(node, [])

    def _constant(self, tensor: gs.Tensor) -> bool:
        return isinstance(tensor, gs.Constant) or tensor.is_empty() or tensor.name in self.computed

    def _take(self, node: gs.Node, inputs: list[gs.Tensor]) -> None:
        nodes, sources = {id(node): node}, dict[str, gs.Constant]()
        for tensor in inputs:
            if isinstance(tensor, gs.Constant):
                sources[tensor.name] = tensor
            else:
                nodes |= self.computed[tensor.name][0]
                sources |= self.computed[tensor.name][1]
        freed = sum(_bytes(s.shape, s.dtype) for s in sources.values() if len(s.outputs) == 1)
        made = sum(_bytes(self.shapes.get(t.name, ()), self.types[t.name]) for t in node.outputs if t.name)
        if made > freed + self.limit:
            self.refused.append((node, f"would make the file {(made - freed) / MIB:.1f} MiB larger"))
            return
        self.folded[id(node)] = node
        self.computed.update({tensor.name: (nodes, sources) for tensor in node.outputs})


def foldable(model: Model, limit: int = MIB) -> list[Fold]:
    """What can be folded without any tensor making the file more than `limit` bytes larger, in graph order.

    Listed are the tensors at the edge, which nodes that are not folded read, and the first ones that were left alone
    because of the limit.
    """
    walk = _FoldWalk(model, limit)
    found = []
    refused = {id(node): why for node, why in walk.refused}
    for node in model.graph.nodes:
        for tensor in node.outputs if id(node) in walk.folded or id(node) in refused else ():
            shape = walk.shapes.get(tensor.name, ())
            if id(node) in refused:
                found.append(Fold(node, tensor.name, shape, 1, refused[id(node)]))
            elif any(id(reader) not in walk.folded for reader in tensor.outputs):
                made_by = tuple(walk.computed[tensor.name][0].values())
                found.append(Fold(node, tensor.name, shape, len(made_by), made_by=made_by))
    return found


def fold_all(model: Model, limit: int, names: Collection[str] | None = None) -> list[Fold]:
    """Fold until nothing is left: what a Reshape by folded dimensions gives has known dimensions itself.

    Args:
        model: is edited.
        limit: as of `foldable`.
        names: of the tensors that are folded; None: all.

    Raises:
        UnsupportedModelError: as of `fold`.
    """
    found: dict[str, Fold] = {}
    while True:
        here = {tensor.name: tensor for tensor in foldable(model, limit)}
        found |= here
        chosen = [name for name, tensor in here.items() if not tensor.refusal and (names is None or name in names)]
        if not chosen:
            return list(found.values())
        fold(model, chosen)


def fold(model: Model, names: Collection[str]) -> None:
    """Turn the named tensors (of `foldable`) into initializers, and drop the nodes that nothing reads any more.

    Raises:
        UnsupportedModelError: onnxruntime, which graphsurgeon computes with, does not run one of the nodes.
    """
    walk = _FoldWalk(model, limit=2**62)
    targets = {name: tensor for name, tensor in model.graph.tensors().items() if name in set(names)}
    nodes = {key: node for name in targets for key, node in walk.computed[name][0].items()}
    for node in list(nodes.values()):
        dimensions = known_dimensions(node, walk.shapes) if node.outputs else None
        if dimensions is not None:
            shape = measured(node)
            node.outputs[0].to_constant(dimensions)
            unlink(node)  # a Shape without output left in the graph stops onnxruntime's inference
            if shape is not None and not shape.outputs[0].outputs and shape.outputs[0].name not in walk.outputs:
                unlink(shape)
    nodes = {key: node for key, node in nodes.items() if node.outputs}
    model.graph.nodes[:] = [node for node in model.graph.nodes if node.outputs]
    made = {node.outputs[0].name for node in nodes.values()}
    sources = {c.name: c for name in targets for c in walk.computed[name][1].values()}
    _evaluate(model, made, list(sources.values()))
    missing = sorted(name for name, tensor in targets.items() if not isinstance(tensor, gs.Constant))
    if missing:
        raise InvariantError("constants were not folded", found=", ".join(missing[:5]))
    for node in reversed([node for node in model.graph.nodes if id(node) in nodes]):
        if not any(tensor.outputs for tensor in node.outputs):
            unlink(node)
            del nodes[id(node)]
            model.graph.nodes.remove(node)


def _evaluate(model: Model, made: set[str], sources: list[gs.Constant]) -> None:
    """Let graphsurgeon compute the nodes whose first output is in `made`; what lies in a file is read meanwhile.

    Nodes go by numbers then: graphsurgeon 0.6.1 leaves a node out where another one has a tensor's name.
    """
    named = [(node, node.name) for node in model.graph.nodes]
    lazy = [(c, c._values) for c in sources if isinstance(c._values, Payload) and c._values.in_file]
    for constant, _ in lazy:
        constant._values = values_of(constant)
    for number, (node, _) in enumerate(named):
        node.name = f"#{number}"
    try:
        with G_LOGGER.suppress():
            model.graph.fold_constants(
                fold_shapes=False,
                recurse_subgraphs=False,
                flatten_subgraphs=False,
                recurse_functions=False,
                error_ok=False,
                should_exclude_node=lambda node: node.outputs[0].name not in made,
            )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise UnsupportedModelError(
            "a constant part of the graph cannot be computed",
            found=str(error).strip().splitlines()[0],
            hint="leave the pass fold out, or run the model in onnxruntime to find the node",
        ) from error
    finally:
        for node, name in named:
            node.name = name
        for constant, values in lazy:
            constant._values = values


def _evaluable(node: gs.Node, types: Types) -> bool:
    plain = is_standard(node) and node.op not in _KEPT
    whole = not getattr(node, "origin", None) or not node.origin.attribute  # no attribute that graphsurgeon cannot run
    outputs = [types.get(tensor.name) for tensor in node.outputs if tensor.name]
    return bool(plain and whole and node.inputs and all(t is not None and t.kind in "fiub" for t in outputs))


def _bytes(shape: Collection[int | str | None], dtype: np.dtype[np.generic]) -> int:
    return math.prod(d for d in shape if isinstance(d, int)) * np.dtype(dtype).itemsize
