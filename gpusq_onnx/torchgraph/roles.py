"""Which initializers are trained, and as what.

    weight    a matrix or kernel that data is multiplied with (MatMul, Gemm, Conv, Einsum)
    bias      added to data along one axis, or the bias operand of Gemm and Conv
    norm      scale and shift of a normalisation; a factor along one axis (layer scale, frozen batch norm)
    position  added to tokens or attention scores, joined to tokens, or a table that is gathered from
    scale     of a QuantizeLinear/DequantizeLinear pair, but not the number over block scales

An initializer is judged by its readers after layout operators and sums of constants. Without a role, and constant, are
attention masks (at most two distinct values), single numbers, boxes and anchors (last axis of at most 4), the input's
own normalisation, integers, and what the graph returns, as it is or computed from constants alone.

Source: docs/torchgraph.md, fact 2: trainable by role, never "every float initializer". Limit: a sinusoidal table that
the exporter stored looks like a learned one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.model import Model, Node, Tensor, values_of
from gpusq_onnx.graph.operators import MEASURES, NORMS, PRODUCTS, QDQ, Is, operators
from gpusq_onnx.graph.qdq.codes import scales_another
from gpusq_onnx.graph.shapes import is_float

TRAINED = ("weight", "bias", "norm", "position", "scale")

# Not what joins or chooses: its operands have roles of their own.
_FOLLOWED = operators(Is.MOVES | Is.RETYPES) - operators(Is.JOINS | Is.INDEXES | Is.WRITES) | QDQ
_OPERANDS = {
    ("Gemm", 0): "weight", ("Gemm", 1): "weight", ("Gemm", 2): "bias",
    ("Conv", 1): "weight", ("Conv", 2): "bias",
    ("ConvTranspose", 1): "weight", ("ConvTranspose", 2): "bias",
    **{(op, slot): "norm" for op in NORMS for slot in (1, 2)},
    ("PRelu", 1): "norm",
    ("Gather", 0): "position",
    ("QuantizeLinear", 1): "scale", ("DequantizeLinear", 1): "scale",
}  # fmt: skip
_BOX = 4


def roles_of(model: Model, train: Collection[str] = TRAINED) -> dict[str, str]:
    """The role of each initializer that has one of `train`; of several, the first in `TRAINED`.

    What is computed from a trained tensor counts as data, so that a projection of learned queries is found, too.
    """
    fixed = returned(model)
    floats = [c for c in model.constants() if is_float(c.dtype) and c.name not in fixed]
    found: dict[str, str] = {}
    while True:
        data = Moving(model, found)
        new = {}
        for constant in floats:
            roles = set(_roles(constant, constant, data)) if constant.name not in found else ()
            role = next((role for role in TRAINED if role in roles), None)
            if role in train and role is not None:
                new[str(constant.name)] = role
        if not new:
            return found
        found |= new


def returned(model: Model) -> set[str]:
    """Names of the tensors that graph outputs are made of which no data reaches: these must not change."""
    flow = Dataflow(model)
    queue = [tensor for tensor in model.graph.outputs if not flow.is_data(tensor)]
    found: set[str] = set()
    while queue:
        tensor = queue.pop()
        if tensor.name not in found:
            found.add(str(tensor.name))
            queue += [read for node in tensor.inputs if node.op not in MEASURES for read in node.inputs]
    return found


class Moving:
    """What changes while training: `moving` are all such tensors, `learned` those after a product or a trained one.

    Args:
        model: the graph.
        trained: names of the trained initializers.
    """

    def __init__(self, model: Model, trained: Collection[str]) -> None:
        self.learned = set(trained)
        self.moving = {str(tensor.name) for tensor in model.graph.inputs} | self.learned
        for node in model.graph.nodes:
            if node.op in MEASURES or not any(tensor.name in self.moving for tensor in node.inputs):
                continue
            made = [str(tensor.name) for tensor in node.outputs]
            self.moving.update(made)
            if node.op in PRODUCTS or any(tensor.name in self.learned for tensor in node.inputs):
                self.learned.update(made)


def _roles(tensor: Tensor, constant: Tensor, data: Moving) -> Iterator[str]:
    for node in tensor.outputs:
        for slot, read in enumerate(node.inputs):
            if read is not tensor:
                continue
            if node.op == "DequantizeLinear" and slot == 1 and scales_another(node):
                continue  # one number over block scales: a step that suits them is many times its own size
            role = _OPERANDS.get((node.op, slot)) or _role_in(node, tensor, constant, data)
            if role:
                yield role
            elif slot == 0 and node.op in _FOLLOWED:
                for made in node.outputs:
                    yield from _roles(made, constant, data)
            elif node.op == "Add" and not any(other.name in data.moving for other in node.inputs):
                yield from {"bias", "position"}.intersection(_roles(node.outputs[0], constant, data))


def _role_in(node: Node, operand: Tensor, constant: Tensor, data: Moving) -> str | None:
    """The role of an operand of a symmetric operator, which is the constant or made from it."""
    others = [str(tensor.name) for tensor in node.inputs if tensor.name in data.moving]
    wide = sum(n > 1 for n in constant.shape)
    if not others or not wide:
        return None
    if node.op in ("MatMul", "Einsum"):
        return "weight" if len(constant.shape) > 1 else None
    if node.op == "Concat":
        return "position" if len(constant.shape) > 1 and constant.shape[-1] > _BOX else None
    if node.op not in ("Add", "Mul") or not any(name in data.learned for name in others):
        return None
    if wide == 1:
        return "bias" if node.op == "Add" else "norm"
    last = (operand.shape or constant.shape)[-1]  # as it is added: a table of biases of 4 heads holds no boxes
    learned = node.op == "Add" and (not isinstance(last, int) or last > _BOX) and _varied(constant)
    return "position" if learned else None


def _varied(constant: Tensor) -> bool:
    """Whether there are more than two distinct values: a mask has two."""
    values = values_of(constant).reshape(-1)
    others = values[values != values[:1]]
    return bool(np.any(others != others[:1]))
