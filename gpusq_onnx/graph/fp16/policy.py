"""Which nodes compute in FP16, and why the others stay in FP32: rules as data, then walks along the graph.

A node computes in FP16 unless one of these holds:

    1. the operator has no FP16 form, or its type is an attribute (ONNX schema; `Range`, `NonMaxSuppression`)
    2. FP16 would overflow or lose what the result is made of (`UNSAFE`: squares, exponentials, sums of many terms, ...)
    3. it belongs to a normalisation in parts, from x - mean to the quotient (its squares overflow above 256)
    4. it is computed from shapes, on the host: in FP32 or integers
    5. it is of another domain or holds a subgraph
    6. it carries what FP16 is too coarse for: coordinates counted in integers, logarithms, angles, and the cheap
       operators that these go through
    7. all that read it stay in FP32, and it is cheap: one Cast before it instead of one after
    8. a constant that it reads overflows or vanishes in FP16; or calibration saw one of its tensors near 65504

Fused LayerNormalization, Softmax (the maximum is subtracted first) and Gelu compute inside in FP32 and stay FP16.

Source: ONNX operator schemas; TensorRT's strongly typed networks; docs/tensorrt.md (a LayerNorm in parts overflows in
Pow). Limits: tensors whose type inference does not know are left as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.dataflow import Dataflow, readers_through
from gpusq_onnx.graph.fp16.numeric import WeightRange, is_single, weight_range
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.norms import decomposed
from gpusq_onnx.graph.operators import MEASURES, MOVES, QDQ, Is, is_standard, operators
from gpusq_onnx.graph.shapes import Types

SINGLE, HALF = np.dtype(np.float32), np.dtype(np.float16)

Reasons = dict[int, str]

_SUM = "a sum of many terms rounds and overflows in FP16"
_TYPED = "its type is an attribute"
_COUNTS = "counts, angles or logarithms: FP16 has eleven bits for them"
UNSAFE: Mapping[str, str] = {
    "Pow": "a power overflows FP16 from 256 squared on",
    "Exp": "an exponential overflows FP16 above 11",
    **dict.fromkeys(operators(Is.REDUCES) - {"ReduceMax", "ReduceMin"} | {"CumSum", "LpNormalization"}, _SUM),
    **dict.fromkeys("Sqrt Reciprocal".split(), "a root or quotient of what may be subnormal in FP16"),
    **dict.fromkeys("Log Sin Cos Tan Asin Acos Atan Mod Floor Ceil Round".split(), _COUNTS),
    **dict.fromkeys("GridSample RoiAlign".split(), "samples at coordinates, which FP16 rounds to whole pixels"),
    **dict.fromkeys(operators(Is.RANDOM) | {"ConstantOfShape", "EyeLike", "Constant"}, _TYPED),
}
_COORDINATES = frozenset("Log Sin Cos CumSum Mod Floor Ceil Round".split())
_OF_NETWORKS = operators(Is.PRODUCT | Is.NORM) | {"Attention", "Softmax", "Gelu"}
_ARITHMETIC = frozenset("Add Sub Mul Div Neg Abs Sqrt Reciprocal Clip Max Min Where Sigmoid Tanh Sign".split())
_CHEAP = MOVES | _ARITHMETIC | {"Cast", "DequantizeLinear"}
_SATURATING = frozenset("Where Clip Max Min Pad".split())  # a limit or a mask may be 65504 instead of more


def half_slots(node: gs.Node, opset: int) -> tuple[list[bool], list[bool]]:
    """For each input and output: whether the operator's schema allows FP16 there (all False outside ONNX)."""
    if not is_standard(node) or not onnx.defs.has(node.op):
        return [False] * len(node.inputs), [False] * len(node.outputs)
    schema = onnx.defs.get_schema(node.op, opset, "")
    allowed = {c.type_param_str: "tensor(float16)" in c.allowed_type_strs for c in schema.type_constraints}

    def of(formals: list[str], count: int) -> list[bool]:
        return [bool(formals) and allowed.get(formals[min(i, len(formals) - 1)], False) for i in range(count)]

    return (
        of([formal.type_str for formal in schema.inputs], len(node.inputs)),
        of([formal.type_str for formal in schema.outputs], len(node.outputs)),
    )


def masked(nodes: Sequence[gs.Node]) -> set[str]:
    """The sums of logits and a constant mask that only a Softmax reads: however low they are, -65504 is as good."""
    found: set[str] = set()
    for node in nodes:
        mask = next((tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)), None)
        sums = node.op == "Add" and mask is not None and weight_range(values_of(mask)).mask
        if sums or (node.op in MOVES and node.inputs[0].name in found):
            found.update(tensor.name for tensor in node.outputs if _ends_in_softmax(tensor))
    return found


def _ends_in_softmax(tensor: gs.Tensor) -> bool:
    """Whether a Softmax reads it, if through layout, and nothing else does."""
    return {reader.op for reader in readers_through(tensor, MOVES)} == {"Softmax"}


def kept_single(
    model: Model,
    flow: Dataflow,
    types: Types,
    flagged: Collection[str] = (),
    chosen: Collection[int] = (),
    fused: Collection[int] = (),
) -> Reasons:
    """The reasons, by id(node), of the float32 nodes that stay in FP32; every other one computes in FP16.

    Args:
        model: any model; flow, types: of the same graph as it is now.
        flagged: tensors that must stay in FP32 with all that makes or reads them (the range guard's findings).
        chosen: ids of nodes that the caller wants in FP32.
        fused: ids of nodes that will be gone.
    """
    return _Walk(model, flow, types, flagged, chosen, fused).reasons


class _Walk:
    def __init__(
        self,
        model: Model,
        flow: Dataflow,
        types: Types,
        flagged: Collection[str],
        chosen: Collection[int],
        fused: Collection[int],
    ) -> None:
        self.flow, self.types = flow, types
        there = [node for node in model.graph.nodes if id(node) not in fused and computes(node)]
        self.nodes = [node for node in there if any(map(self._float, _tensors(node)))]
        self.reasons: Reasons = {}
        self.ranges: dict[str, WeightRange] = {}
        shaped = _from_shapes(model, flow, types)
        for node in self.nodes:
            reason = self._alone(node, model.opset, shaped, flagged)
            if reason or id(node) in chosen:
                self.reasons[id(node)] = reason or "asked for by name"
        self._norms()
        self._coordinates()
        self._upstream()

    def _float(self, tensor: gs.Tensor) -> bool:
        return is_single(tensor, self.types)

    def _alone(self, node: gs.Node, opset: int, shaped: Collection[str], flagged: Collection[str]) -> str:
        """Why the node stays in FP32, as far as it alone decides."""
        if not is_standard(node):
            return f"an operator of the domain {node.domain}, whose types are unknown"
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return "its subgraphs stay as they are"
        if any(t.name in shaped for t in node.outputs):
            return "computed from shapes, on the host"
        if any(t.name and t.name not in self.types and isinstance(t, gs.Variable) for t in _tensors(node)):
            return "a tensor's type is not known"
        inputs, outputs = half_slots(node, opset)
        slots = [*zip(node.inputs, inputs, strict=True), *zip(node.outputs, outputs, strict=True)]
        if not any(allowed for tensor, allowed in slots if self._float(tensor)):
            return "the operator has no FP16 form"
        near = next((t.name for t in _tensors(node) if t.name in flagged), None)
        if near is not None:
            return f"{near} comes near 65504, FP16's largest number"
        if node.op == "LayerNormalization" and node.attrs.get("stash_type", 1) != onnx.TensorProto.FLOAT:
            return "its stash_type asks for squares in less than FP32"
        return UNSAFE.get(node.op, "") or self._constants(node)

    def _constants(self, node: gs.Node) -> str:
        if node.op in QDQ:
            return ""  # scales are clamped
        for tensor in node.inputs:
            if not isinstance(tensor, gs.Constant) or not self._float(tensor):
                continue
            if tensor.name not in self.ranges:
                self.ranges[tensor.name] = weight_range(values_of(tensor))
            found = self.ranges[tensor.name]
            if found.overflows and not (node.op in _SATURATING or (node.op == "Add" and found.mask)):
                return f"the constant {tensor.name} holds {found.largest:.3g}, more than FP16 does"
            if found.vanishes:
                return f"the constant {tensor.name} of at most {found.largest:.3g} is zero in FP16"
        return ""

    def _norms(self) -> None:
        """Rule 3: from the mean of squares up to the difference that is squared, and down to the quotient."""
        reason = "part of a decomposed normalisation, whose squares overflow FP16"
        for norm in decomposed(self.nodes):
            if self.flow.is_data(norm.mean.outputs[0]):
                self.reasons = {id(node): reason for node in norm.core} | self.reasons

    def _coordinates(self) -> None:
        """Rule 6: what counts, and the cheap operators after it."""
        queue = [node for node in self.nodes if self._counts(node)]
        for node in queue:
            self.reasons.setdefault(id(node), _COUNTS)
        while queue:
            for tensor in (t for t in queue.pop().outputs if self._float(t)):
                for node in tensor.outputs:
                    if node.op in _CHEAP and id(node) not in self.reasons:
                        self.reasons[id(node)] = "works on coordinates or logarithms, which FP16 is too coarse for"
                        queue.append(node)

    def _counts(self, node: gs.Node) -> bool:
        if not node.inputs or not any(self.flow.is_data(tensor) for tensor in node.outputs):
            return False
        source = self.types.get(node.inputs[0].name)
        integers = node.op == "Cast" and source is not None and source.kind in "iu"
        return node.op in _COORDINATES or (integers and self._float(node.outputs[0]))

    def _upstream(self) -> None:
        """Rule 7: cheap nodes that only FP32 nodes read; layout alone gains nothing and is taken back."""
        added: dict[int, gs.Node] = {}
        for node in reversed(self.nodes):
            if id(node) in self.reasons or node.op not in _CHEAP or node.op == "Cast":
                continue
            readers = [r for t in node.outputs for r in t.outputs if self._float(t)]
            ends = any(t.name in self.flow.outputs for t in node.outputs)
            if readers and not ends and all(id(reader) in self.reasons for reader in readers):
                self.reasons[id(node)] = "read by nodes in FP32 alone"
                added[id(node)] = node
        for node in self.nodes:
            if id(node) in added and node.op in MOVES:
                made = [p for t in node.inputs if self._float(t) for p in t.inputs]
                if not any(id(producer) in self.reasons for producer in made):
                    del self.reasons[id(node)]


def _tensors(node: gs.Node) -> Iterable[gs.Tensor]:
    return (*node.inputs, *node.outputs)


def computes(node: gs.Node) -> bool:
    """Whether the type of what a node reads matters to it."""
    return node.op not in MEASURES


def _from_shapes(model: Model, flow: Dataflow, types: Types) -> set[str]:
    """Tensors whose values depend on the shapes of data, and on no data; a network after them is no shape."""
    found: set[str] = set()
    for node in model.graph.nodes:
        if node.op in _OF_NETWORKS or any(flow.is_data(tensor) for tensor in node.outputs):
            continue
        lays_out = node.op in MOVES and is_single(node.inputs[0], types)  # a weight is one in any shape
        decides = node.inputs[:1] if lays_out else node.inputs
        if not computes(node) or any(tensor.name in found for tensor in decides):
            found.update(tensor.name for tensor in node.outputs)
    return found
