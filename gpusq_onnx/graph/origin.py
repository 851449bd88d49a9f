"""What graphsurgeon would lose of a graph: kept beside its nodes on import, put back on export, carried into copies.

    nodes      metadata, documentation, overload; attributes of kinds that it does not know, and empty lists
    subgraphs  (bodies of If, Loop, Scan) leave exactly as they came: graphsurgeon's picture of them is for reading only
    frame      the graph's inputs, outputs, documentation and metadata

Limits: an edit inside a subgraph is not written; nor is one of its initializers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto

from gpusq_onnx.graph.payload import Payload

_KNOWN = frozenset(getattr(AttributeProto, kind) for kind in "FLOAT INT STRING TENSOR FLOATS INTS STRINGS".split())
_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_FRAME = ("input", "output", "metadata_props", "quantization_annotation")


def frame_of(graph: GraphProto) -> GraphProto:
    """The graph's frame, without nodes and values."""
    frame = GraphProto(name=graph.name, doc_string=graph.doc_string)
    for name in _FRAME:
        getattr(frame, name).extend(getattr(graph, name))
    return frame


def remember(graph: gs.Graph, origin: GraphProto) -> None:
    """Give the nodes of a graph just imported their `origin`, and take from graphsurgeon what it cannot export."""
    for node, proto in zip(graph.nodes, origin.node, strict=True):
        node.origin = NodeProto(metadata_props=proto.metadata_props)
        _copy_texts(proto, node.origin)
        for attribute in proto.attribute:
            if attribute.type == AttributeProto.GRAPH:
                remember(node.attrs[attribute.name], attribute.g)
            elif attribute.type in _KNOWN and not _empty(attribute):
                continue
            else:
                node.attrs.pop(attribute.name, None)
            node.origin.attribute.append(attribute)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.type != "tensor_type":
            tensor.dtype = tensor.shape = None  # a sequence, a map: without value_info


def restore(graph: gs.Graph, exported: GraphProto, frame: GraphProto) -> None:
    """Put back into an exported graph what `remember` and `frame_of` kept."""
    for node, proto in zip(graph.nodes, exported.node, strict=True):
        origin: NodeProto | None = getattr(node, "origin", None)
        if origin is None:
            continue
        _copy_texts(origin, proto)
        proto.metadata_props.extend(origin.metadata_props)
        kept = {attribute.name for attribute in origin.attribute}
        plain = [attribute for attribute in proto.attribute if attribute.name not in kept]
        del proto.attribute[:]
        proto.attribute.extend([*plain, *origin.attribute])
    for name in _FRAME:
        exported.ClearField(name)
        getattr(exported, name).extend(getattr(frame, name))
    exported.name, exported.doc_string = frame.name, frame.doc_string


def copied(graph: gs.Graph) -> gs.Graph:
    """A graph of its own with the same values: nodes, tensors and lists are new, arrays and attributes are shared.

    graphsurgeon's own copy splits a constant in two that a subgraph and the graph around it read.
    """
    return _copied(graph, {})


def _copied(graph: gs.Graph, twins: dict[int, gs.Tensor]) -> gs.Graph:
    def twin(tensor: gs.Tensor) -> gs.Tensor:
        if id(tensor) not in twins:
            twins[id(tensor)] = _twin(tensor)
        return twins[id(tensor)]

    nodes = []
    for node in graph.nodes:
        attrs = {k: _copied(v, twins) if isinstance(v, gs.Graph) else v for k, v in node.attrs.items()}
        inputs, outputs = ([twin(tensor) for tensor in side] for side in (node.inputs, node.outputs))
        nodes.append(gs.Node(node.op, node.name, attrs, inputs, outputs, node.domain))
        if hasattr(node, "origin"):
            nodes[-1].origin = node.origin
    return gs.Graph(
        nodes,
        [twin(tensor) for tensor in graph.inputs],
        [twin(tensor) for tensor in graph.outputs],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
        functions=list(graph.functions),
    )


def _twin(tensor: gs.Tensor) -> gs.Tensor:
    if isinstance(tensor, gs.Constant):
        return gs.Constant(tensor.name, tensor._values, tensor.data_location, tensor._export_dtype)
    return gs.Variable(tensor.name, tensor.dtype, tensor.shape, tensor.type)


def subgraphs(graph: GraphProto | FunctionProto) -> Iterator[GraphProto]:
    """Every subgraph, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                yield inner
                yield from subgraphs(inner)


def inline_subgraph_data(graph: GraphProto, folder: Path | None) -> set[Path]:
    """Bring external data of subgraphs into the graph, in place, and return its files.

    It has no other way into the file that is written.

    Raises:
        UnsupportedModelError: the data is missing, truncated or outside the model's folder.
    """
    files = set()
    for inner in subgraphs(graph):
        values = [a.t for node in inner.node for a in node.attribute if a.type == AttributeProto.TENSOR]
        for tensor in (*inner.initializer, *values):
            if tensor.data_location == TensorProto.EXTERNAL:
                payload = Payload(tensor, folder)
                files.add(payload.file)
                tensor.CopyFrom(payload.inlined())
    return files


def _copy_texts(source: NodeProto, target: NodeProto) -> None:
    for name in ("doc_string", "overload"):
        if source.HasField(name):
            setattr(target, name, getattr(source, name))


def _empty(attribute: AttributeProto) -> bool:
    lists = (AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS)
    return attribute.type in lists and not (attribute.floats or attribute.ints or attribute.strings)


def reads(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those of its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from reads(inner)
            yield from (value.name for value in attribute.g.output)
