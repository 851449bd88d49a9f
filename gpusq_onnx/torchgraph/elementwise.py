"""Rows of the table: operators that work element by element, comparisons, and casts.

Source: the ONNX operator documentation. Integer division and modulo follow ONNX (towards zero; the divisor's sign).
"""

from __future__ import annotations

import operator

import numpy as np
import onnx
import torch
from torch.nn import functional

from gpusq_onnx.torchgraph import functions
from gpusq_onnx.torchgraph.builder import Unsupported, Value
from gpusq_onnx.torchgraph.call import Call, Emitted, OperatorRow, binary, folded, torch_type, unary
from gpusq_onnx.torchgraph.quantiser import clipped


def _divide(c: Call) -> Emitted:
    if c.x(0).dtype.is_floating_point:
        return binary(operator.truediv)(c)
    return binary(functions.divide)(c)


def _modulo(c: Call) -> Value:
    result: Value = c(functions.modulo, c.x(0), c.scalar_or(1, c.x(0)), bool(c.attr("fmod", 0)))
    return result


def _power(c: Call) -> Value:
    base, exponent = c.x(0), c.scalar_or(1, c.x(0))
    raised: Value = c(torch.pow, base, exponent)
    return _as_type(c, raised, base.dtype)


def _cast(c: Call) -> Value:
    return _as_type(c, c.x(0), torch_type(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(c.attr("to"))))))


def _cast_like(c: Call) -> Value:
    return _as_type(c, c.x(0), c.x(1).dtype)


def _as_type(c: Call, value: Value, dtype: torch.dtype) -> Value:
    result: Value = value if value.dtype == dtype else c(functions.cast, value, dtype)
    return result


def _clip(c: Call) -> Value:
    if (part_of_quantisers := clipped(c)) is not None:
        return part_of_quantisers
    low, high = (c.scalar_or(i, c.x(0)) if c.has(i) else None for i in (1, 2))
    if low is None and high is None:
        return c.x(0)
    result: Value = c(torch.clamp, c.x(0), low, high)
    return result


def _gelu(c: Call) -> Value:
    result: Value = c(functional.gelu, c.x(0), approximate=c.text("approximate", "none"))
    return result


def _where(c: Call) -> Value:
    condition, a, b = c.x(0), c.x(1), c.x(2)
    if condition.uniform and not (a.known and b.known):
        for kept, wanted in ((a, True), (b, False)):  # a mask that selects one side everywhere
            if bool((condition.worlds[0] == wanted).all()):
                out: Value = c(torch.where, condition, a, b)
                if [w.shape for w in out.worlds] == [w.shape for w in kept.worlds]:
                    return kept
    result: Value = c(torch.where, condition, c.scalar_or(1, b), c.scalar_or(2, a))
    return result


def _leaky(c: Call) -> Value:
    result: Value = c(functional.leaky_relu, c.x(0), float(c.attr("alpha", 0.01)))
    return result


def _elu(c: Call) -> Value:
    result: Value = c(functional.elu, c.x(0), float(c.attr("alpha", 1.0)))
    return result


def _hard_sigmoid(c: Call) -> Value:
    line = c(operator.add, c(operator.mul, c.x(0), float(c.attr("alpha", 0.2))), float(c.attr("beta", 0.5)))
    result: Value = c(torch.clamp, line, 0.0, 1.0)
    return result


def _prelu(c: Call) -> Value:
    x, slope = c.x(0), c.x(1)
    result: Value = c(torch.where, c(operator.ge, x, 0), x, c(operator.mul, x, slope))
    return result


def _mean(c: Call) -> Value:
    total = folded(operator.add)(c)
    result: Value = c(operator.truediv, total, len(c.inputs))
    return result


def _is_inf(c: Call) -> Value:
    if not (c.attr("detect_negative", 1) and c.attr("detect_positive", 1)):
        raise Unsupported("IsInf of one sign is not supported")
    result: Value = c(torch.isinf, c.x(0))
    return result


ROWS = (
    OperatorRow("Add", 7, binary(operator.add, neutral=0)),
    OperatorRow("Sub", 7, binary(operator.sub)),
    OperatorRow("Mul", 7, binary(operator.mul, neutral=1)),
    OperatorRow("Div", 7, _divide),
    OperatorRow("Mod", 10, _modulo),
    OperatorRow("Pow", 7, _power),
    OperatorRow("Max", 8, folded(torch.maximum)),
    OperatorRow("Min", 8, folded(torch.minimum)),
    OperatorRow("Sum", 8, folded(operator.add)),
    OperatorRow("Mean", 8, _mean),
    OperatorRow("Equal", 7, binary(operator.eq)),
    OperatorRow("Less", 7, binary(operator.lt)),
    OperatorRow("Greater", 7, binary(operator.gt)),
    OperatorRow("LessOrEqual", 12, binary(operator.le)),
    OperatorRow("GreaterOrEqual", 12, binary(operator.ge)),
    OperatorRow("And", 7, folded(torch.logical_and)),
    OperatorRow("Or", 7, folded(torch.logical_or)),
    OperatorRow("Xor", 7, folded(torch.logical_xor)),
    OperatorRow("Not", 1, unary(torch.logical_not)),
    OperatorRow("Abs", 6, unary(torch.abs)),
    OperatorRow("Neg", 6, unary(torch.neg)),
    OperatorRow("Sign", 9, unary(torch.sign)),
    OperatorRow("Reciprocal", 6, unary(torch.reciprocal)),
    OperatorRow("Sqrt", 6, unary(torch.sqrt)),
    OperatorRow("Exp", 6, unary(torch.exp)),
    OperatorRow("Log", 6, unary(torch.log)),
    OperatorRow("Sin", 7, unary(torch.sin)),
    OperatorRow("Cos", 7, unary(torch.cos)),
    OperatorRow("Floor", 6, unary(torch.floor)),
    OperatorRow("Ceil", 6, unary(torch.ceil)),
    OperatorRow("Round", 11, unary(torch.round)),
    OperatorRow("Erf", 9, unary(torch.erf)),
    OperatorRow("Tanh", 6, unary(torch.tanh)),
    OperatorRow("Sigmoid", 6, unary(torch.sigmoid)),
    OperatorRow("Relu", 6, unary(torch.relu)),
    OperatorRow("Softplus", 1, unary(functional.softplus)),
    OperatorRow("HardSwish", 14, unary(functional.hardswish)),
    OperatorRow("HardSigmoid", 6, _hard_sigmoid),
    OperatorRow("Mish", 18, unary(functional.mish)),
    OperatorRow("LeakyRelu", 6, _leaky),
    OperatorRow("Elu", 6, _elu),
    OperatorRow("PRelu", 7, _prelu),
    OperatorRow("Gelu", 20, _gelu),
    OperatorRow("Clip", 11, _clip),
    OperatorRow("Cast", 6, _cast),
    OperatorRow("CastLike", 15, _cast_like),
    OperatorRow("Where", 9, _where),
    OperatorRow("IsNaN", 9, unary(torch.isnan)),
    OperatorRow("IsInf", 10, _is_inf),
)
