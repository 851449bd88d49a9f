"""A bias [N] as a row [1, N]: the same sums, and no Gemm with a bias for onnxruntime, which takes those of one axis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.edits import rewire
from gpusq_onnx.graph.model import values_of


def add_as_row(adds: gs.Node, bias: gs.Constant, rank: int | None, fresh: Callable[[str], str]) -> list[gs.Node]:
    """Let a node add its bias as a row; returns the nodes that must follow it.

    Args:
        rank: of the product that the bias joins. One of a single axis gets a second by the row: a Squeeze takes it off.
    """
    rewire([adds], bias, gs.Constant(fresh(f"{bias.name}_row"), values_of(bias).reshape(1, -1)))
    if rank != 1:
        return []
    result, axes = adds.outputs[0], gs.Constant(fresh(f"{bias.name}_axes"), np.zeros(1, np.int64))
    made = adds.outputs[0] = gs.Variable(fresh(f"{result.name}_row"), result.dtype)
    return [gs.Node("Squeeze", fresh(f"{adds.name or result.name}_Squeeze"), {}, [made, axes], [result])]
