"""If nodes whose condition is constant: the branch that is taken moves into the graph, the node goes.

Exporters leave an If for what Python decided by a shape: torch's `squeeze(dim)`, a resize that may be needed (SAM 2).
TensorRT and the passes do not look into branches. The names that the If makes stay; inner names that the graph has
elsewhere get a number.

Limits: a branch that holds another If or a Loop moves only where no inner name has to change, since those refer to
names; conditions that depend on data stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.edits import Names, position, rewire, unlink
from gpusq_onnx.graph.model import Model, lift_constant_nodes, values_of
from gpusq_onnx.graph.rewrites.rule import Unfit


def taken_branch(node: gs.Node) -> gs.Graph:
    """The branch that an If always takes. Raises Unfit."""
    condition = node.inputs[0]
    if not isinstance(condition, gs.Constant):
        raise Unfit("its condition is not known before the model runs")
    branch: gs.Graph = node.attrs["then_branch" if values_of(condition).reshape(-1)[0] else "else_branch"]
    if any(isinstance(result, gs.Variable) and not result.inputs for result in branch.outputs):
        raise Unfit("its branch returns a tensor of the graph around it")
    return branch


def inline_branch(model: Model, node: gs.Node) -> None:
    """Put the branch that `node` always takes in its place. Raises Unfit; then nothing has changed."""
    branch = taken_branch(node)
    place = position(model.graph.nodes, node)
    model.graph.nodes.pop(place)
    names = Names(model)
    own = list(_own(model, branch))
    fresh = [names.fresh(str(tensor.name)) for tensor in own]
    if any(tensor.name != name for tensor, name in zip(own, fresh, strict=True)) and any(branch.subgraphs()):
        model.graph.nodes.insert(place, node)
        raise Unfit("its branch holds another one, which refers to names that the graph has elsewhere")
    sides = [side for side in node.attrs.values() if isinstance(side, gs.Graph)]
    model.inner -= {str(t.name) for side in sides for t in _own(model, side) if isinstance(t, gs.Constant)}
    for tensor, name in zip(own, fresh, strict=True):
        tensor.name = name
    for inside in branch.nodes:
        inside.name = names.fresh(str(inside.name or f"{node.name}_{inside.op}"))
    targets, results, nodes = list(node.outputs), list(branch.outputs), list(branch.nodes)
    for side in sides:
        if side is not branch:
            _cut_off(side)
    unlink(node)
    made: dict[int, gs.Tensor] = {}
    for result, target in zip(results, targets, strict=True):
        if result.inputs:
            _rename(result, target)
            made[id(result)] = target
        else:  # an initializer of the branch, or a result that the list names twice
            source = made.get(id(result), result)
            nodes.append(gs.Node("Identity", names.fresh(f"{target.name}_Identity"), {}, [source], [target]))
    model.graph.nodes[place:place] = nodes
    lift_constant_nodes(model.graph)


def _own(model: Model, branch: gs.Graph) -> Iterator[gs.Tensor]:
    """The tensors that belong to a branch and not to the graph around it."""
    for tensor in branch.tensors().values():
        inside = bool(tensor.inputs) and any(node is tensor.inputs[0] for node in branch.nodes)
        if tensor.name and (inside or (isinstance(tensor, gs.Constant) and tensor.name in model.inner)):
            yield tensor


def _rename(result: gs.Tensor, target: gs.Tensor) -> None:
    """Let the producer of `result` make `target` instead."""
    (producer,) = result.inputs
    rewire(list(result.outputs), result, target)
    index = next(i for i, output in enumerate(producer.outputs) if output is result)
    producer.outputs[index] = target


def _cut_off(graph: gs.Graph) -> None:
    """Take a graph's nodes off the outer tensors that they read."""
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                _cut_off(value)
        unlink(node)
