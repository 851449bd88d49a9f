"""Rows of the table: products, convolutions, pooling, normalisation, softmax, attention.

Source: the ONNX operator documentation, opsets 13 to 25. Limits: no auto_pad but NOTSET and VALID on dynamic maps; no
transposed convolution with an output shape; Attention without past keys and without its score output.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from gpusq_onnx.torchgraph import functions
from gpusq_onnx.torchgraph.builder import Unsupported, Value
from gpusq_onnx.torchgraph.call import Call, Emitted, OperatorRow, binary


def _gemm(c: Call) -> Value:
    a, b, alpha, beta = c.x(0), c.x(1), float(c.attr("alpha", 1.0)), float(c.attr("beta", 1.0))
    bias = c.optional(2)
    a = c(torch.t, a) if c.attr("transA", 0) else a
    if alpha == beta == 1 and (bias is None or bias.ndim == 1):
        weight = b if c.attr("transB", 0) else c(torch.t, b)
        linear: Value = c(functional.linear, a, weight, bias)
        return linear
    product = c(torch.matmul, a, c(torch.t, b) if c.attr("transB", 0) else b)
    product = product if alpha == 1 else c(operator.mul, product, alpha)
    total: Value = (
        product if bias is None else c(operator.add, product, bias if beta == 1 else c(operator.mul, bias, beta))
    )
    return total


def _einsum(c: Call) -> Value:
    result: Value = c(torch.einsum, c.text("equation"), *[value for value in c.inputs if value is not None])
    return result


_SAME = ("SAME_UPPER", "SAME_LOWER")
_Padded = tuple[Value, tuple[int, ...]]


def _padded(c: Call, kernel: Sequence[int], fill: float, symmetric_only: bool = False) -> _Padded:
    """The input, padded where its two sides differ, and the padding that is left for the operator itself."""
    x, rank = c.x(0), len(kernel)
    begin, end = _pads(c, kernel)
    if begin == end and not (symmetric_only and any(2 * p > k for p, k in zip(begin, kernel, strict=True))):
        return x, begin
    flat = [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
    padded: Value = c(functional.pad, x, flat, "constant", fill)
    return padded, (0,) * rank


def _pads(c: Call, kernel: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = len(kernel)
    auto = c.text("auto_pad", "NOTSET")
    if auto not in _SAME:
        pads = tuple(c.attr("pads") or (0,) * 2 * rank) if auto == "NOTSET" else (0,) * 2 * rank
        return pads[:rank], pads[rank:]
    strides, dilations = (tuple(c.attr(name) or (1,) * rank) for name in ("strides", "dilations"))
    begin, end = [], []
    for k, s, d, n in zip(kernel, strides, dilations, c.x(0).worlds[0].shape[2:], strict=True):
        total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        low, high = total // 2, total - total // 2
        begin.append(low if auto == "SAME_UPPER" else high)
        end.append(high if auto == "SAME_UPPER" else low)
    return tuple(begin), tuple(end)


def _window(c: Call, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(c.attr("strides") or (1,) * rank), tuple(c.attr("dilations") or (1,) * rank)


_CONV: Sequence[Callable[..., Any]] = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED: Sequence[Callable[..., Any]] = (
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
)  # fmt: skip
_MAX_POOL: Sequence[Callable[..., Any]] = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE_POOL: Sequence[Callable[..., Any]] = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def _conv(c: Call) -> Value:
    kernel = c.x(1).worlds[0].shape[2:]
    x, padding = _padded(c, kernel, 0.0)
    stride, dilation = _window(c, len(kernel))
    function = _CONV[len(kernel) - 1]
    result: Value = c(function, x, c.x(1), c.optional(2), stride, padding, dilation, int(c.attr("group", 1)))
    return result


def _conv_transpose(c: Call) -> Value:
    kernel = c.x(1).worlds[0].shape[2:]
    stride, dilation = _window(c, len(kernel))
    extra = tuple(c.attr("output_padding") or (0,) * len(kernel))
    if c.text("auto_pad") in _SAME:  # stride times as large as the input
        totals = [e + (k - 1) * d + 1 - s for e, k, d, s in zip(extra, kernel, dilation, stride, strict=True)]
        begin, end = (tuple(half) for half in zip(*((t // 2, t - t // 2) for t in totals), strict=True))
    else:
        begin, end = _pads(c, kernel)
    if begin != end or min(begin) < 0 or c.attr("output_shape"):
        raise Unsupported("a transposed convolution with an output shape, or with padding that is uneven or below 0")
    function, group = _TRANSPOSED[len(kernel) - 1], int(c.attr("group", 1))
    result: Value = c(function, c.x(0), c.x(1), c.optional(2), stride, begin, extra, group, dilation)
    return result


def _max_pool(c: Call) -> Value:
    kernel = tuple(c.attr("kernel_shape"))
    x, padding = _padded(c, kernel, float("-inf"), symmetric_only=True)
    stride, dilation = _window(c, len(kernel))
    ceil = bool(c.attr("ceil_mode", 0))
    left = [n - (k - 1) * d - 1 for n, k, d in zip(x.worlds[0].shape[2:], kernel, dilation, strict=True)]
    if ceil and x is not c.x(0) and any(n % s for n, s in zip(left, stride, strict=True)):
        raise Unsupported("a max pool that rounds its size up, with uneven padding")
    result: Value = c(_MAX_POOL[len(kernel) - 1], x, kernel, stride, padding, dilation, ceil)
    return result


def _average_pool(c: Call) -> Value:
    kernel = tuple(c.attr("kernel_shape"))
    begin, end = _pads(c, kernel)
    stride, dilation = _window(c, len(kernel))
    if begin != end or any(d != 1 for d in dilation):
        raise Unsupported("an average pool with uneven padding or dilation")
    counted = bool(c.attr("count_include_pad", 0))
    function = _AVERAGE_POOL[len(kernel) - 1]
    result: Value = c(function, c.x(0), kernel, stride, begin, bool(c.attr("ceil_mode", 0)), counted)
    return result


def _global(function: Callable[..., Any]) -> Callable[[Call], Value]:
    def emit(c: Call) -> Value:
        result: Value = c(function, c.x(0), tuple(range(2, c.x(0).ndim)), True)
        return result

    return emit


def _layer_norm(c: Call) -> Emitted:
    x, axes, epsilon = c.x(0), c.x(0).ndim - c.axis(-1), float(c.attr("epsilon", 1e-5))
    made = layer_norm(c, x, c.x(1), c.optional(2), axes=axes, epsilon=epsilon)
    if len(c.node.outputs) == 1:
        return made
    variance, mean = c(torch.var_mean, x, tuple(range(x.ndim - axes, x.ndim)), correction=0, keepdim=True)
    return made, mean, c(torch.rsqrt, c(operator.add, variance, epsilon))


def layer_norm(
    call: Callable[..., Any], x: Value, weight: Value, bias: Value | None, *, axes: int, epsilon: float
) -> Value:
    """LayerNormalization over the last `axes` axes; `call` calls a torch function (see `Builder.call`)."""
    shape = tuple(x.worlds[0].shape[x.ndim - axes :])
    if all(p is None or tuple(p.worlds[0].shape) == shape for p in (weight, bias)):
        result: Value = call(functional.layer_norm, x, shape, weight, bias, epsilon)
        return result
    scaled = call(operator.mul, call(functional.layer_norm, x, shape, None, None, epsilon), weight)
    shifted: Value = scaled if bias is None else call(operator.add, scaled, bias)
    return shifted


def _rms_norm(c: Call) -> Value:
    shape = tuple(c.x(0).worlds[0].shape[c.axis(-1) :])
    result: Value = c(functional.rms_norm, c.x(0), shape, c.x(1), float(c.attr("epsilon", 1e-5)))
    return result


def _batch_norm(c: Call) -> Value:
    if c.attr("training_mode", 0):
        raise Unsupported("a BatchNormalization exported in training mode", "export the model in eval mode")
    x, weight, bias, mean, variance = (c.x(i) for i in range(5))
    result: Value = c(
        functional.batch_norm, x, mean, variance, weight, bias, False, 0.0, float(c.attr("epsilon", 1e-5))
    )
    return result


def _instance_norm(c: Call) -> Value:
    epsilon = float(c.attr("epsilon", 1e-5))
    result: Value = c(functional.instance_norm, c.x(0), None, None, c.x(1), c.x(2), True, 0.0, epsilon)
    return result


def _group_norm(c: Call) -> Value:
    groups, epsilon = int(c.attr("num_groups")), float(c.attr("epsilon", 1e-5))
    result: Value = c(functional.group_norm, c.x(0), groups, c.x(1), c.x(2), epsilon)
    return result


def _softmax(function: Callable[..., Any]) -> Callable[[Call], Value]:
    def emit(c: Call) -> Value:
        axis = c.axis(-1)
        result: Value = c(function, c.x(0), -1 if axis == c.x(0).ndim - 1 else axis)
        return result

    return emit


def _attention(c: Call) -> Value:
    if any(c.has(i) for i in (4, 5, 6)) or len([t for t in c.node.outputs if t.name]) > 1 or c.attr("softcap", 0.0):
        raise Unsupported("an Attention with past keys, a second output or softcap")
    q, k, v = (c.x(i) for i in range(3))
    flat = q.ndim == 3
    if flat:
        heads, shared = int(c.attr("q_num_heads")), int(c.attr("kv_num_heads"))
        q, k, v = (c(functions.split_heads, t, n) for t, n in ((q, heads), (k, shared), (v, shared)))
    scale = float(c.attr("scale") or q.worlds[0].shape[-1] ** -0.5)
    context = c(functions.attention, q, k, v, c.optional(3), bool(c.attr("is_causal", 0)), scale)
    merged: Value = c(functions.merge_heads, context) if flat else context
    return merged


def _top_k(c: Call) -> Emitted:
    (k,) = c.ints(1)
    found: Emitted = c(torch.topk, c.x(0), k, c.axis(-1), bool(c.attr("largest", 1)), bool(c.attr("sorted", 1)))
    return found


def _grid_sample(c: Call) -> Value:
    mode, padding = str(c.attr("mode", "linear")), str(c.attr("padding_mode", "zeros"))
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    corners = bool(c.attr("align_corners", 0))
    result: Value = c(functional.grid_sample, c.x(0), c.x(1), mode, padding, corners)
    return result


ROWS = (
    OperatorRow("MatMul", 1, binary(torch.matmul)),
    OperatorRow("Gemm", 7, _gemm),
    OperatorRow("Einsum", 12, _einsum),
    OperatorRow("Conv", 1, _conv),
    OperatorRow("ConvTranspose", 1, _conv_transpose),
    OperatorRow("MaxPool", 8, _max_pool),
    OperatorRow("AveragePool", 7, _average_pool),
    OperatorRow("GlobalAveragePool", 1, _global(torch.mean)),
    OperatorRow("GlobalMaxPool", 1, _global(torch.amax)),
    OperatorRow("LayerNormalization", 17, _layer_norm),
    OperatorRow("RMSNormalization", 23, _rms_norm),
    OperatorRow("BatchNormalization", 7, _batch_norm),
    OperatorRow("InstanceNormalization", 6, _instance_norm),
    OperatorRow("GroupNormalization", 21, _group_norm),
    OperatorRow("Softmax", 13, _softmax(torch.softmax)),
    OperatorRow("LogSoftmax", 13, _softmax(torch.log_softmax)),
    OperatorRow("Attention", 23, _attention),
    OperatorRow("TopK", 10, _top_k),
    OperatorRow("GridSample", 16, _grid_sample),
)
