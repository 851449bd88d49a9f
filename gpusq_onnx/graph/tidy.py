"""Forms that are legal ONNX, or nearly, and that onnxruntime or this tool cannot use: rewritten when a model is read.

    1. trailing inputs and outputs that are left out as ""    LayerNormalization(x, scale, "") ends the process of
                                                              onnxruntime 1.31; Squeeze(x, "") is refused
    2. two nodes of one name in a graph                       refused; the later ones get a name of their own
    3. a declared type or shape of an inner tensor that       a wrong type is refused; a wrong size becomes a wrong
       inference does not confirm                             Reshape where onnxruntime fuses MatMul and Add
    4. calls of local functions                               run, but no walk sees the weights inside
    5. nodes after those that read them                       run, as every runtime sorts; walks here go in order
    6. initializers that are listed as inputs                 a caller may give others, so that onnxruntime folds no Q
                                                              and no weight is its kernels' to lay out: they saturate
    7. some Transposes before Linears in FP16                 end the process of onnxruntime: `fp16.transposes`
    8. sparse initializers                                    run; no inference here knows them, and passes want values
    9. "ai.onnx" for ONNX's own domain, which is ""           run; onnx's checker finds no such operators

Case 3 is decided once for all: of an inner tensor's declaration (`value_info`) stays what inference finds as well, and
what inference cannot know (after operators of other domains). Viewers still show shapes, and no runtime reads a wrong
one. Limits: declarations inside subgraphs stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from heapq import heappop, heappush
from math import prod
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
)

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.door.nodes import read_names
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import STANDARD, is_standard
from gpusq_onnx.graph.opset import opset_of
from gpusq_onnx.graph.origin import subgraphs
from gpusq_onnx.graph.shapes import Dim, infer_shapes

_LARGEST = 2**31 - 1  # bytes, protobuf's


def tidy_nodes(model: ModelProto) -> None:
    """Cases 1, 2, 5 and 6, in place, in subgraphs too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in stored]
    if len(fed) < len(model.graph.input):
        kept = GraphProto(input=fed)
        del model.graph.input[:]
        model.graph.input.extend(kept.input)
    for body in [model.graph, *subgraphs(model.graph)][::-1]:  # the inner ones first: sorting copies
        for node in body.node:
            _cut(node)
        _name_apart(body.node)
        _sort(body)


def _cut(node: NodeProto) -> None:
    while node.input and not node.input[-1]:
        node.input.pop()
    while len(node.output) > 1 and not node.output[-1]:
        node.output.pop()


def _name_apart(nodes: Sequence[NodeProto]) -> None:
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    for node in nodes:
        name, count = node.name, 1
        while node.name and node.name in seen:
            count += 1
            if f"{name}_{count}" not in taken:
                node.name = f"{name}_{count}"
        seen.add(node.name)


def _sort(body: GraphProto) -> None:
    """Put each node after those that it reads; of those that may come next, the first. The graph has no circle."""
    maker = {name: place for place, node in enumerate(body.node) for name in node.output if name}
    awaited = [{maker[name] for name in read_names(node) if name in maker} for node in body.node]
    if all(place > max(others, default=-1) for place, others in enumerate(awaited)):
        return
    readers: dict[int, list[int]] = defaultdict(list)
    for place, others in enumerate(awaited):
        for other in others:
            readers[other].append(place)
    ready = [place for place, others in enumerate(awaited) if not others]
    order = []
    while ready:
        order.append(place := heappop(ready))
        for reader in readers[place]:
            awaited[reader].remove(place)
            if not awaited[reader]:
                heappush(ready, reader)
    nodes = GraphProto(node=[body.node[place] for place in order])
    del body.node[:]
    body.node.extend(nodes.node)


def spell_domains(model: ModelProto) -> None:
    """Case 9, in place, in subgraphs and local functions too."""
    for owner in (model, *model.functions):
        versions = {_spelled(entry.domain): entry.version for entry in owner.opset_import}
        if len(versions) < len(owner.opset_import) or any(_spelled(e.domain) != e.domain for e in owner.opset_import):
            del owner.opset_import[:]
            owner.opset_import.extend(helper.make_opsetid(*entry) for entry in versions.items())
    levels: list[GraphProto | FunctionProto] = [model.graph, *subgraphs(model.graph)]
    for function in model.functions:
        function.domain = _spelled(function.domain)
        levels += [function, *subgraphs(function)]
    for node in (node for level in levels for node in level.node if node.domain):
        node.domain = _spelled(node.domain)


def _spelled(domain: str) -> str:
    return "" if domain in STANDARD else domain


def without_functions(model: ModelProto, path: Path) -> ModelProto:
    """Case 4: the model with every call replaced by the function's nodes; the model itself where there are none.

    Args:
        path: what an error calls the model.

    Raises:
        UnsupportedModelError: the functions and their calls do not fit together.
    """
    if not model.functions:
        return model
    _spell_defaults(model)
    own = opset_of(model)
    try:
        if all(opset_of(function) in (0, own) for function in model.functions):
            return inliner.inline_local_functions(model)
        return inliner.inline_local_functions(_typed(model), convert_version=True)
    except Exception as error:  # the inliner's exceptions share no base class
        raise UnsupportedModelError(
            "the calls of local functions cannot be replaced by the functions' nodes",
            where=str(path),
            expected="one function of each name, called with no more inputs and outputs than it has",
            found=str(error).strip().splitlines()[0],
            hint="export the model again, without local functions if the exporter can",
        ) from error


def _typed(model: ModelProto) -> ModelProto:
    """With the types of all tensors, initializers too: onnx wants them of what a function reads, to convert it."""
    typed = shape_inference.infer_shapes(model)
    known = {value.name for value in (*typed.graph.value_info, *typed.graph.input)}
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in typed.graph.initializer
        if tensor.name not in known
    )
    return typed


def _spell_defaults(model: ModelProto) -> None:
    """Give every call the attributes that its function has a default for: the inliner forgets these."""
    defaults = {(f.domain, f.name, f.overload): list(f.attribute_proto) for f in model.functions}
    if not any(defaults.values()):
        return
    bodies: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while bodies:
        for node in bodies.pop().node:
            bodies += [a.g for a in node.attribute if a.HasField("g")]
            given = {a.name for a in node.attribute}
            known = defaults.get((node.domain, node.op_type, node.overload), ())
            node.attribute.extend(a for a in known if a.name not in given)


def fill_sparse(model: ModelProto, path: Path) -> bool:
    """Case 8, in place, in subgraphs too; whether there were any.

    Raises:
        UnsupportedModelError: an element lies outside its tensor, or the tensor is too large for a model file.
    """
    graphs = [graph for graph in (model.graph, *subgraphs(model.graph)) if graph.sparse_initializer]
    for graph in graphs:
        graph.initializer.extend(_filled(sparse, path) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    return bool(graphs)


def _filled(sparse: SparseTensorProto, path: Path) -> TensorProto:
    values, places = (numpy_helper.to_array(part, str(path.parent)) for part in (sparse.values, sparse.indices))
    name, size = sparse.values.name, prod(sparse.dims) * values.dtype.itemsize
    if size > _LARGEST:
        raise UnsupportedModelError(
            f"the sparse initializer {name!r} is too large without its sparsity",
            where=str(path),
            expected=f"up to {_LARGEST} bytes",
            found=f"{size} bytes",
        )
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
    except (IndexError, ValueError) as error:
        raise UnsupportedModelError(
            f"the sparse initializer {name!r} contradicts itself", where=str(path), found=str(error)
        ) from error
    return numpy_helper.from_array(dense, name)


def confirm_declarations(model: Model) -> None:
    """Case 3, in place."""
    border = {tensor.name for tensor in (*model.graph.inputs, *model.graph.outputs)}
    declared = [
        tensor
        for name, tensor in model.graph.tensors().items()
        if isinstance(tensor, gs.Variable) and name not in border and (tensor.dtype, tensor.shape) != (None, None)
    ]
    if not declared:
        return
    try:
        shapes, types = infer_shapes(model, one_image=False)
    except UnsupportedModelError:
        return  # the graph contradicts itself: who works with its shapes says so
    for tensor in declared:
        foreign = any(not is_standard(node) for node in tensor.inputs)
        kind, shape = types.get(tensor.name), shapes.get(tensor.name)
        if foreign and kind is None:
            continue
        tensor.dtype = kind
        tensor.shape = None if kind is None or tensor.shape is None else _confirmed(tensor.shape, shape)


def _confirmed(declared: Sequence[Dim], found: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """What inference found, with the declared names where it found no number."""
    if found is None or len(found) != len(declared):
        return found
    return tuple(
        other if isinstance(other, str) and not isinstance(one, int) else one
        for one, other in zip(found, declared, strict=True)
    )
