"""A Gemm's alpha and beta, multiplied into its weight and its bias: what is left is a Linear.

    Gemm(x, W, b, alpha, beta) -> Gemm(x, alpha W, beta b)

Source: ONNX Gemm-13. Limits: stored floats; a weight that nothing else reads, or all with the same alpha: it would be
stored twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.model import values_of
from gpusq_onnx.graph.rewrites.rule import Editor, Known, Unfit
from gpusq_onnx.graph.shapes import is_float

_FACTORS = ("alpha", "beta")


def is_scaled(node: gs.Node) -> bool:
    """Whether a Gemm has factors other than 1."""
    return any(node.attrs.get(name, 1) != 1 for name in _FACTORS)


def check_gemm(node: gs.Node, known: Known) -> None:
    """Raises Unfit where its constants cannot take the factors."""
    _, weight, *bias = node.inputs
    if not all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in (weight, *bias)):
        raise Unfit("its weight or its bias is computed")
    if not is_float(known.type(weight)):
        raise Unfit("its weight is no float")
    alpha = _alpha(node)
    if alpha != 1 and not all(reader.op == "Gemm" and _alpha(reader) == alpha for reader in weight.outputs):
        raise Unfit(f"{weight.name!r} is read elsewhere, too")


def rewrite_gemm(node: gs.Node, _: None, editor: Editor) -> gs.Tensor:
    """The Gemm without factors."""
    x, weight, *bias = node.inputs
    alpha = _alpha(node)
    operands = [x, weight if alpha == 1 else editor.layout_of(weight, _times(weight, alpha))]
    if bias and not bias[0].is_empty():
        operands.append(editor.constant("bias", _times(bias[0], node.attrs.get("beta", 1))))
    return editor.add("Gemm", *operands, **{k: v for k, v in node.attrs.items() if k not in _FACTORS})


def _alpha(node: gs.Node) -> float:
    return float(node.attrs.get("alpha", 1))


def _times(constant: gs.Constant, factor: float) -> NDArray[Any]:
    values = values_of(constant)
    return (values.astype(np.float64) * factor).astype(values.dtype)
