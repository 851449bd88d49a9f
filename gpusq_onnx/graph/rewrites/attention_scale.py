"""The factor of attention scores, moved before Q: (Q K') s and (Q sqrt s)(K' sqrt s) become (Q s) K'.

Between a product and its pairs a fused FP8 kernel allows nothing, and one factor on Q's side is what it is built for.
Only single constant numbers move; a legacy export computes its factor from shapes, and that stays. In float arithmetic
the result is the same to the bit where the factors are powers of two, and within rounding elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.attention import Attention, Factor, factors_after
from gpusq_onnx.graph.edits import Names, position, rewire, unlink
from gpusq_onnx.graph.model import Model, values_of


def scale_to_move(attention: Attention) -> float | str:
    """The factor that moves before Q, or a sentence why nothing moves."""
    if attention.fused:
        return "one fused node has its factor inside"
    after, key = _after(attention.scores), _before(attention.scores.inputs[1])
    if after is None and key is None:
        maker = attention.scores.inputs[1].inputs
        computed = bool(maker) and maker[0].op in ("Mul", "Div")
        return f"{'the factor on K is computed: it stays' if computed else 'no factor is after the product or on K'}"
    return math.prod(factor.value for factor in (after, key) if factor is not None)


def move_scale(model: Model, attention: Attention) -> None:
    """Move the factors after the product and on K before Q. Does nothing where there are none."""
    scores = attention.scores
    found = [factor for factor in (_after(scores), _before(scores.inputs[1])) if factor is not None]
    if not found:
        return
    value = math.prod(factor.value for factor in found)
    kind = np.dtype(next(t.dtype for t in found[0].node.inputs if isinstance(t, gs.Constant)))
    for factor in found:
        made = factor.node.outputs[0]
        if factor.data.inputs and factor.data.inputs[0] is scores:
            scores.outputs[0] = made
            factor.node.outputs.clear()
        else:
            rewire([scores], made, factor.data)
        if not factor.node.outputs or not made.outputs:
            unlink(factor.node)
    names, query = Names(model), scores.inputs[0]
    scaled = gs.Variable(names.fresh(f"{query.name}_scaled"), query.dtype or kind, query.shape)
    constant = gs.Constant(names.fresh(f"{query.name}_factor"), np.asarray(value, kind))
    node = gs.Node("Mul", names.fresh(f"{query.name}_Scale"), {}, [query, constant], [scaled])
    scores.inputs[0] = scaled
    nodes = model.graph.nodes
    nodes.insert(position(nodes, scores), node)
    nodes[:] = [other for other in nodes if other.outputs]


def _after(scores: gs.Node) -> Factor | None:
    """The factor that is the only reader of the product."""
    return next(factors_after(_OnnxNodes(), scores), None)


def _before(tensor: gs.Tensor) -> Factor | None:
    """The factor that makes a tensor."""
    return _OnnxNodes().factor(tensor.inputs[0]) if tensor.inputs else None


class _OnnxNodes:
    """See `graph.attention.Chains`."""

    def factor(self, node: gs.Node) -> Factor | None:
        """A Mul or Div by a constant number."""
        if node.op not in ("Mul", "Div") or len(node.inputs) != 2:
            return None
        for index in (1, 0) if node.op == "Mul" else (1,):
            number, data = node.inputs[index], node.inputs[1 - index]
            if isinstance(number, gs.Constant) and math.prod(number.shape) == 1 and len(number.shape) <= 1:
                value = float(np.asarray(values_of(number), np.float64).reshape(()))
                if value and math.isfinite(value) and not isinstance(data, gs.Constant):
                    return Factor(node, data, value if node.op == "Mul" else 1 / value)
        return None

    def reader(self, node: gs.Node) -> gs.Node | None:
        """The only reader."""
        readers = node.outputs[0].outputs
        return readers[0] if len(readers) == 1 else None
