"""The outputs of a graph's normalisations, whole or taken apart by an exporter: where activation maps are taken.

    one node      LayerNormalization, RMSNormalization, BatchNormalization, GroupNormalization, InstanceNormalization
    in parts      mean of squares -> + eps -> Sqrt -> a quotient -> products and sums with constants

Source: the operators' documentation. Limits: a batch normalisation that was folded into its convolution is none.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import NORMS
from gpusq_onnx.graph.rewrites.norms import squares


def norm_outputs(model: Model) -> list[str]:
    """The names of what normalisations give, in graph order."""
    found = []
    for node in model.graph.nodes:
        if node.op in NORMS:
            found.append(str(node.outputs[0].name))
        elif node.op == "Sqrt" and _is_of_squares(node) and (end := _end(node)) is not None:
            found.append(str(end.name))
    return found


def _is_of_squares(root: gs.Node) -> bool:
    """Whether what a Sqrt reads is a mean of squares, with a constant added."""
    tensor = root.inputs[0]
    for _ in range(2):
        maker = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        if maker is None:
            return False
        if maker.op == "ReduceMean":
            square = maker.inputs[0].inputs[0] if maker.inputs[0].inputs else None
            return square is not None and squares(square)
        data = [one for one in maker.inputs if not isinstance(one, gs.Constant)]
        if maker.op != "Add" or len(data) != 1:
            return False
        tensor = data[0]
    return False


def _end(root: gs.Node) -> gs.Tensor | None:
    """The last of the quotient and what is multiplied with and added to it; None where the root divides nothing."""
    divided = [node for node in root.outputs[0].outputs if node.op == "Div" and node.inputs[1] is root.outputs[0]]
    inverse = [node for node in root.outputs[0].outputs if node.op == "Reciprocal" or node not in divided]
    if not divided:
        divided = [reader for node in inverse for reader in node.outputs[0].outputs if reader.op == "Mul"]
    if not divided:
        return None
    tensor = divided[0].outputs[0]
    while len(tensor.outputs) == 1 and tensor.outputs[0].op in ("Mul", "Add"):
        reader = tensor.outputs[0]
        others = [one for one in reader.inputs if one is not tensor]
        if len(others) != 1 or not isinstance(others[0], gs.Constant):
            break
        tensor = reader.outputs[0]
    return tensor
