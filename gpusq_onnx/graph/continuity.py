"""Which outputs follow the inputs smoothly, so that two ways of rounding must give nearly the same.

A choice is a step: where float data becomes integers or truth values (TopK's and ArgMax's indices, NonZero, a
comparison, NonMaxSuppression's boxes), a difference in the last bit may give another answer, and everything that is
computed from it. A detector's sorted scores are smooth, the boxes gathered by their order are not.

What the caller feeds, moved and compared at most, is the same to the bit in every session: SAM's points whose label is
-1 are no choice of the model.

No steps: QuantizeLinear, whose rounding is what is judged; Shape and Size; IsNaN and IsInf of masks; an If whose
condition is fed, of branches without a step.
Limits: what a Loop or Scan computes from data counts as a choice, and any type that changes within a branch.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.dataflow import Dataflow, has_subgraph
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import Is, operators
from gpusq_onnx.graph.shapes import Types

_NO_CHOICE = operators(Is.QUANTISES | Is.MEASURES) | {"DynamicQuantizeLinear", "IsNaN", "IsInf"}
_EXACT = operators(Is.MOVES | Is.RETYPES) | {"Where"}
_SMOOTH = operators(Is.MOVES | Is.MEASURES | Is.AFFINE | Is.ACTIVATES | Is.NORM | Is.PRODUCT | Is.REDUCES) | {
    "Constant", "Softmax", "Sqrt", "Exp", "Log", "Neg", "Abs", "Reciprocal", "Max", "Min", "Clip", "Resize"
}  # fmt: skip
_STEPS = operators(Is.RANDOM) | {"Round", "Floor", "Ceil", "Sign", "Mod"}


def smooth_outputs(model: Model, types: Types) -> set[str]:
    """The names of the graph's outputs that depend on no choice."""
    flow = Dataflow(model)
    chosen: set[str] = set()
    exact = {tensor.name for tensor in model.graph.inputs}
    for node in flow.nodes:
        if not has_subgraph(node) and all(tensor.name in exact for tensor in flow.data_inputs(node)):
            whole = [t.name for t in node.outputs if t.name in types and types[t.name].kind in "iub"]
            exact.update(tensor.name for tensor in node.outputs if node.op in _EXACT or tensor.name in whole)
        step = _may_choose(node, flow, exact, chosen) if has_subgraph(node) else _is_step(node, flow)
        if step or any(tensor.name in chosen for tensor in node.inputs):
            chosen.update(tensor.name for tensor in node.outputs)
        elif node.op not in _NO_CHOICE and any(_real(t, types) and t.name not in exact for t in flow.data_inputs(node)):
            chosen.update(t.name for t in node.outputs if t.name in types and types[t.name].kind in "iub")
    return {tensor.name for tensor in model.graph.outputs} - chosen


def _may_choose(node: gs.Node, flow: Dataflow, exact: set[str], chosen: set[str]) -> bool:
    """Whether an If, Loop or Scan may make a choice, or computes from one."""
    if node.op != "If" or (flow.is_data(node.inputs[0]) and node.inputs[0].name not in exact):
        return True
    inner = [inside for branch in node.subgraphs(recursive=True) for inside in branch.nodes]
    read = {tensor.name for inside in inner for tensor in inside.inputs}
    read.update(tensor.name for branch in node.subgraphs(recursive=True) for tensor in branch.outputs)
    return bool(read & chosen) or any(inside.op not in _SMOOTH for inside in inner)


def _is_step(node: gs.Node, flow: Dataflow) -> bool:
    made_of_data = not node.inputs or bool(flow.data_inputs(node))
    return node.op in _STEPS and made_of_data


def _real(tensor: gs.Tensor, types: Types) -> bool:
    kind = types.get(tensor.name)
    return kind is None or kind.kind not in "iub"
