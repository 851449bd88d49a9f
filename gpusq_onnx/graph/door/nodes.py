"""Rules of the door on nodes: attributes, names, operands, circles.

Each is a function from a parsed model to its violations; the list is in `door`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto

from gpusq_onnx.graph.door.arrival import Arrival, Level, bodies
from gpusq_onnx.graph.element_types import TYPE_ATTRIBUTES
from gpusq_onnx.graph.operators import STANDARD, WEIGHTS, Is, operators
from gpusq_onnx.graph.opset import NEWEST, OLDEST
from gpusq_onnx.graph.wording import node_label

_FIELDS = {
    AttributeProto.FLOAT: "f", AttributeProto.INT: "i", AttributeProto.STRING: "s", AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g", AttributeProto.SPARSE_TENSOR: "sparse_tensor", AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints", AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors", AttributeProto.GRAPHS: "graphs", AttributeProto.TYPE_PROTOS: "type_protos",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
}  # fmt: skip
_LISTS = frozenset("floats ints strings tensors graphs type_protos sparse_tensors".split())
# Operands that are lists of numbers, by operator: a stored one has at most one axis.
_LISTED = {
    "Slice": (1, 2, 3, 4), "Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,), "Reshape": (1,), "Expand": (1,),
    "Tile": (1,), "Pad": (1, 3), "Resize": (1, 2, 3), "ConstantOfShape": (0,),
    **dict.fromkeys(operators(Is.REDUCES), (1,)),
}  # fmt: skip

# What onnxruntime puts into ONNX's domain at any opset; both follow the schema of LayerNormalization-17.
_OF_ONNXRUNTIME = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})

_KNOWN_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}


def attributes(arrival: Arrival) -> Iterator[str]:
    """An attribute has a name of its own, a type that ONNX knows, and a value of that type and no other."""
    for level, node in arrival.nodes():
        for name, count in Counter(attribute.name for attribute in node.attribute).items():
            if not name or count > 1:
                fault = "more than once" if name else "without a name"
                yield f"{node_label(node)} has an attribute {name!r} {fault}"
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                if not isinstance(level.body, FunctionProto):
                    yield f"attribute {attribute.name!r} of {node_label(node)} refers to a function's, and is in none"
                continue
            field = _FIELDS.get(attribute.type)
            if field is None:
                yield f"attribute {attribute.name!r} of {node_label(node)} has the unknown type {attribute.type}"
            elif {name for name in _FIELDS.values() if _is_set(attribute, name)} - {field}:
                yield f"attribute {attribute.name!r} of {node_label(node)} has values of several types"
            elif field not in _LISTS and not _is_set(attribute, field):
                yield f"attribute {attribute.name!r} of {node_label(node)} has no value"


def element_types(arrival: Arrival) -> Iterator[str]:
    """An attribute that says a type of elements says one that ONNX knows."""
    for _, node in arrival.nodes():
        if node.domain not in STANDARD:
            continue
        for attribute in node.attribute:
            if attribute.name not in TYPE_ATTRIBUTES or attribute.type != AttributeProto.INT or attribute.ref_attr_name:
                continue
            unset = attribute.i == TensorProto.UNDEFINED and attribute.name not in ("to", "dtype")
            if attribute.i not in _KNOWN_TYPES and not unset:
                yield f"attribute {attribute.name!r} of {node_label(node)} is {attribute.i}, no type of elements"


def _is_set(attribute: AttributeProto, field: str) -> bool:
    return bool(getattr(attribute, field)) if field in _LISTS else bool(attribute.HasField(field))


def outputs(arrival: Arrival) -> Iterator[str]:
    """The graph gives something, and makes or holds all that it gives."""
    graph = arrival.proto.graph
    if not graph.output:
        yield "the graph has no outputs"
    there = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    there |= {sparse.values.name for sparse in graph.sparse_initializer}
    there |= {name for node in graph.node for name in node.output}
    for value in graph.output:
        if value.name not in there:
            yield f"nothing makes the output {value.name!r}"


def names(arrival: Arrival) -> Iterator[str]:
    """On each level a name means one tensor, every initializer and node output has one maker."""
    for level in arrival.levels:
        made = Counter(name for node in level.nodes for name in node.output if name)
        inputs = _inputs(level)
        for name, count in Counter(inputs).items():
            if count > 1:
                yield f"{level.where} has {count} inputs named {name!r}"
        if isinstance(level.body, GraphProto):
            stored = [*level.body.initializer, *(sparse.values for sparse in level.body.sparse_initializer)]
            for name, count in Counter(tensor.name for tensor in stored).items():
                if not name or count > 1:
                    yield f"{level.where} has {count} initializers named {name!r}"
                made[name] += count
            inputs = [name for name in inputs if name not in {tensor.name for tensor in stored}]
        for name in inputs:
            made[name] += 1
        for name, count in made.items():
            if count > 1:
                yield f"the tensor {name!r} of {level.where} is made {count} times"
        for node in level.nodes:
            if not node.op_type:
                yield f"{node_label(node)} of {level.where} has no operator"


def _inputs(level: Level) -> list[str]:
    if isinstance(level.body, FunctionProto):
        return list(level.body.input)
    return [value.name for value in level.body.input]


def schemas(arrival: Arrival) -> Iterator[str]:
    """A node has as many inputs, outputs and such attributes as its operator's schema says at the model's opset."""
    local = {(f.domain if f.domain not in STANDARD else "", f.name) for f in arrival.proto.functions}
    for level, node in arrival.nodes():
        domain = "" if node.domain in STANDARD else node.domain
        version = arrival.opset(level, domain)
        if (domain, node.op_type) in local:
            continue
        if domain and version is None:
            yield f"{node_label(node)} is of the domain {domain!r}, which is not imported"
        elif version is None or (not domain and not OLDEST <= version <= NEWEST):
            continue  # `opset` refuses it, with what it takes
        elif schema := _schema(node.op_type, domain, version) or _of_onnxruntime(node.op_type, domain):
            yield from _fits(node, schema)
        elif not domain:
            yield f"{node_label(node)} is no operator of opset {version}"


@lru_cache(maxsize=1024)
def _schema(op: str, domain: str, version: int) -> _Schema | None:
    try:
        return _Schema(onnx.defs.get_schema(op, min(max(version, -1), 2**31 - 1), domain))  # it takes no other number
    except onnx.defs.SchemaError:
        return None


def _of_onnxruntime(op: str, domain: str) -> _Schema | None:
    return _schema("LayerNormalization", "", 17) if op in _OF_ONNXRUNTIME and not domain else None


class _Schema:
    """What is asked of an operator's schema, read out once."""

    def __init__(self, schema: Any) -> None:
        single = onnx.defs.OpSchema.FormalParameterOption.Single
        self.inputs, self.outputs = (schema.min_input, schema.max_input), (schema.min_output, schema.max_output)
        self.needed = [place for place, value in enumerate(schema.inputs) if value.option == single]
        self.made = [place for place, value in enumerate(schema.outputs) if value.option == single]
        self.types = {name: int(attribute.type.value) for name, attribute in schema.attributes.items()}
        self.required = [name for name, attribute in schema.attributes.items() if attribute.required]
        self.deprecated = bool(schema.deprecated)


def _fits(node: NodeProto, schema: _Schema) -> Iterator[str]:
    if schema.deprecated:
        yield f"{node_label(node)} is of an operator that was withdrawn"
    for kind, given, (least, most) in (("inputs", node.input, schema.inputs), ("outputs", node.output, schema.outputs)):
        if not least <= len(given) <= most:
            yield f"{node_label(node)} has {len(given)} {kind}, its operator takes {least} to {most}"
            return
    if any(not node.input[place] for place in schema.needed if place < len(node.input)):
        yield f"{node_label(node)} lacks an input that its operator needs"
    if any(not node.output[place] for place in schema.made if place < len(node.output)):
        yield f"{node_label(node)} lacks an output that its operator makes"
    given_types = {attribute.name: attribute.type for attribute in node.attribute}
    for name, kind in given_types.items():
        if name not in schema.types:
            yield f"{node_label(node)} has the attribute {name!r}, which its operator has not"
        elif schema.types[name] != kind:
            yield f"attribute {name!r} of {node_label(node)} is of another type than its operator's"
    for name in schema.required:
        if name not in given_types:
            yield f"{node_label(node)} lacks the attribute {name!r}"
    for attribute in node.attribute:
        if attribute.name == "num_outputs" and attribute.i != len(node.output):  # which ends the process of onnx
            yield f"{node_label(node)} has {len(node.output)} outputs, its attribute num_outputs says {attribute.i}"


def acyclic(arrival: Arrival) -> Iterator[str]:
    """No tensor depends on itself: every walk over the graph ends."""
    for level in arrival.levels:
        makers = {name: place for place, node in enumerate(level.nodes) for name in node.output if name}
        reads = [{makers[name] for name in read_names(node) if name in makers} for node in level.nodes]
        place = _on_a_circle({number: sorted(read) for number, read in enumerate(reads)})
        if place is not None:
            yield f"{node_label(level.nodes[place])} of {level.where} depends on its own output"


def read_names(node: NodeProto) -> Iterator[str]:
    """The names that a node reads, those that its subgraphs take from around them included."""
    yield from node.input
    for body in bodies(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {sparse.values.name for sparse in body.sparse_initializer}
        own |= {name for inner in body.node for name in inner.output}
        taken = [name for inner in body.node for name in read_names(inner)]
        yield from (name for name in (*taken, *(value.name for value in body.output)) if name not in own)


def calls(arrival: Arrival) -> Iterator[str]:
    """No local function calls itself, directly or through others."""
    functions = {(f.domain, f.name): f for f in arrival.proto.functions}
    called: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for key, function in functions.items():
        pending = list(function.node)
        while pending:
            node = pending.pop()
            called[key].append((node.domain, node.op_type))
            pending += [inner for body in bodies(node) for inner in body.node]
    found = _on_a_circle({key: [other for other in called[key] if other in functions] for key in functions})
    if found is not None:
        yield f"the local function {found[1]!r} calls itself"


def _on_a_circle(reads: Mapping[Any, Sequence[Any]]) -> Any | None:
    """A member of a circle in a graph given as lists of what each member reads; None where there is none."""
    waits = {member: len(set(read)) for member, read in reads.items()}
    readers: dict[Hashable, list[Any]] = defaultdict(list)
    for member, read in reads.items():
        for other in set(read):
            readers[other].append(member)
    ready = [member for member, count in waits.items() if not count]
    while ready:
        for reader in readers[ready.pop()]:
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    stuck = next((member for member, count in waits.items() if count), None)
    if stuck is None:
        return None
    seen = set()
    while stuck not in seen:  # what waits reads something that waits: following it leads onto a circle
        seen.add(stuck)
        stuck = next(other for other in reads[stuck] if waits[other])
    return stuck


def lists(arrival: Arrival) -> Iterator[str]:
    """Axes, sizes, starts and shapes that are stored are scalars or lists, not matrices."""
    for level in arrival.graphs:
        ranks = {tensor.name: len(tensor.dims) for tensor in level.body.initializer}
        for node in level.nodes:
            if node.op_type == "Constant" and node.output and node.attribute and node.attribute[0].HasField("t"):
                ranks[node.output[0]] = len(node.attribute[0].t.dims)
        for node in level.nodes:
            for at in _LISTED.get(node.op_type, ()) if node.domain in STANDARD else ():
                name = node.input[at] if at < len(node.input) else ""
                if ranks.get(name, 1) > 1:
                    yield f"{node_label(node)} takes a list of numbers, and {name!r} has {ranks[name]} axes"


def weights(arrival: Arrival) -> Iterator[str]:
    """No MatMul, Gemm or Conv has a weight without elements."""
    for level in arrival.graphs:
        empty = {tensor.name for tensor in level.body.initializer if 0 in tensor.dims}
        for node in level.nodes if empty else ():
            operands = [node.input[at] for at in WEIGHTS.get(node.op_type, ()) if at < len(node.input)]
            for name in operands:
                if name in empty:
                    yield f"the weight {name!r} of {node_label(node)} has no elements"
