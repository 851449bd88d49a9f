"""onnxruntime's own operators (domain com.microsoft), of a file that it or its tools have optimised, as ONNX's.

TensorRT has none of them, and what is fused there no pass sees: the norm that takes outlier channels, the bias of a
Linear, the Linears of an Attention.

    SkipLayerNormalization(x, skip, gamma, beta, bias)   Add, LayerNormalization; SkipSimplified...: an RMS norm
    SimplifiedLayerNormalization(x, gamma)               an RMS norm in parts: it is written into ONNX's own domain
    BiasGelu, FastGelu, Gelu, QuickGelu                  Add, Gelu; x * Sigmoid(1.702 x)
    FusedMatMul, FusedGemm, FusedConv                    Transpose, Mul, MatMul; Gemm or Conv, Add, activation
    Attention(x, W [C, 3H], b), MultiHeadAttention       three MatMuls, and the products as in `fused_attention`

They do come back: a default session fuses them anew when it loads the result.

Source: onnxruntime 1.31, its ContribOperators.md and CPU kernels. Limits: attention with masks by length, keys of
earlier calls or rotary positions; norms that return their mean; everything else of that domain stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.helper import np_dtype_to_tensor_dtype

from gpusq_onnx.graph.model import values_of
from gpusq_onnx.graph.operators import ONNXRUNTIME, PRODUCTS
from gpusq_onnx.graph.rewrites.fused_attention import AttentionForm, write_attention
from gpusq_onnx.graph.rewrites.rule import Editor, Known, Rule, Unfit

_ACTIVATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"": (), "Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}
)
"""What FusedConv and FusedGemm may end with, and the names of its parameters in their order."""


_RMS = "SimplifiedLayerNormalization"  # the one that onnxruntime saves into ONNX's own domain
_NUMBERS = frozenset(
    "axis epsilon stash_type alpha transA transB transBatchA transBatchB num_heads unidirectional do_rotary scale"
    " activation_alpha activation_beta".split()
)
_LISTS = frozenset({"activation_params", "qkv_hidden_sizes"})


def _fits(node: gs.Node, known: Known) -> None:
    """Of operators that are always like their rule says."""


def _row(op: str, does: str, least: int, write: Any, check: Callable[[gs.Node, Known], Any] = _fits) -> Rule:
    """A rule whose check comes after that of `least` operands and of attributes: no checker knows these operators."""

    def checked(node: gs.Node, known: Known) -> Any:
        if any(operand is None for operand in _given(node, least)):
            raise Unfit(f"it has fewer than {least} operands")
        for name, value in node.attrs.items():
            numbers = [value] if name in _NUMBERS else value if name in _LISTS and isinstance(value, list) else []
            if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
                raise Unfit(f"its attribute {name} is {value!r}")
        return check(node, known)

    return Rule(op, does, checked, write)


def _given(node: gs.Node, count: int) -> list[gs.Tensor | None]:
    """The first inputs; None for those that are left out."""
    found = [None if tensor.is_empty() else tensor for tensor in node.inputs[:count]]
    return [*found, *[None] * (count - len(found))]


def _used(node: gs.Node, outputs: slice) -> bool:
    return any(tensor.name and not tensor.is_empty() for tensor in node.outputs[outputs])


def _check_norm(node: gs.Node, known: Known) -> None:
    if _used(node, slice(1, 3)):
        raise Unfit("it returns its mean or its deviation")


def _write_skip_norm(node: gs.Node, _: None, editor: Editor) -> gs.Tensor:
    x, skip, gamma, beta, bias = _given(node, 5)
    scales = [gamma] if beta is None else [gamma, beta]
    total = _sum(node, editor, x, skip, bias)
    return editor.add("LayerNormalization", total, *scales, axis=-1, epsilon=_epsilon(node))


def _write_skip_rms(node: gs.Node, _: None, editor: Editor) -> gs.Tensor:
    x, skip, gamma, bias = _given(node, 4)
    return _rms(_sum(node, editor, x, skip, bias), gamma, [-1], _epsilon(node), editor, editor.dtype)


def _check_rms(node: gs.Node, known: Known) -> tuple[list[int], np.dtype[Any]]:
    """The axes, from the last, and the type of the result."""
    _check_norm(node, known)
    if len(node.inputs) > 2:
        raise Unfit(f"it has {len(node.inputs)} operands")
    if node.attrs.get("stash_type", 1) != TensorProto.FLOAT:
        raise Unfit("its stash_type asks for squares in less than FP32")
    axis = int(node.attrs.get("axis", -1))
    first = axis - len(known.shape(node.inputs[0])) if axis >= 0 else axis
    return list(range(first, 0)), known.type(node.inputs[1])


def _write_rms(node: gs.Node, form: tuple[list[int], np.dtype[Any]], editor: Editor) -> gs.Tensor:
    x, gamma = node.inputs
    axes, dtype = form
    return _rms(x, gamma, axes, float(node.attrs.get("epsilon", 1e-5)), editor, dtype)


def _rms(
    x: gs.Tensor, gamma: gs.Tensor, axes: Sequence[int], epsilon: float, editor: Editor, dtype: np.dtype[Any]
) -> gs.Tensor:
    """x / sqrt(mean of squares + epsilon) in FP32, times gamma in `dtype`, its type."""
    wide = np.dtype(np.float32)
    single = x if editor.dtype == wide else editor.add("Cast", x, dtype=wide, to=TensorProto.FLOAT)
    square = editor.add("Mul", single, single, dtype=wide)
    mean = editor.add("ReduceMean", square, editor.numbers("axes", axes), dtype=wide)
    least = editor.constant("epsilon", np.asarray(epsilon, wide))
    root = editor.add("Sqrt", editor.add("Add", mean, least, dtype=wide), dtype=wide)
    unit = editor.add("Div", single, root, dtype=wide)
    if dtype != wide:
        unit = editor.add("Cast", unit, dtype=dtype, to=np_dtype_to_tensor_dtype(dtype))
    return editor.add("Mul", unit, gamma, dtype=dtype)


def _epsilon(node: gs.Node) -> float:
    return float(node.attrs.get("epsilon", 1e-12))


def _sum(node: gs.Node, editor: Editor, x: gs.Tensor, skip: gs.Tensor, bias: gs.Tensor | None) -> gs.Tensor:
    """x + skip + bias, which the node may give as well; the bias on the side that a product makes."""
    if bias is not None and not _is_product(x) and _is_product(skip):
        skip = editor.add("Add", skip, bias)
    elif bias is not None:
        x = editor.add("Add", x, bias)
    total = editor.add("Add", x, skip)
    if _used(node, slice(3, 4)):
        editor.also(3, total)
    return total


def _is_product(tensor: gs.Tensor) -> bool:
    return any(maker.op in PRODUCTS for maker in tensor.inputs)


def _write_gelu(node: gs.Node, _: None, editor: Editor) -> gs.Tensor:
    x, bias = _given(node, 2)
    total = x if bias is None else editor.add("Add", x, bias)
    return editor.add("Gelu", total, approximate="tanh" if node.op == "FastGelu" else "none")


def _write_quick_gelu(node: gs.Node, _: None, editor: Editor) -> gs.Tensor:
    alpha = editor.constant("alpha", np.asarray(node.attrs.get("alpha", 1.702), editor.dtype))
    return editor.add("Mul", node.inputs[0], editor.add("Sigmoid", editor.add("Mul", node.inputs[0], alpha)))


def _check_matmul(node: gs.Node, known: Known) -> list[list[int]]:
    orders = []
    for side, tensor in zip("AB", node.inputs[:2], strict=True):
        order: list[int] = []
        if node.attrs.get(f"trans{side}", 0) or node.attrs.get(f"transBatch{side}", 0):
            order = list(range(len(known.shape(tensor))))
        if node.attrs.get(f"transBatch{side}", 0) and len(order) > 2:
            order = [*order[1:-1], order[0], order[-1]]
        if node.attrs.get(f"trans{side}", 0) and len(order) > 1:
            order = [*order[:-2], order[-1], order[-2]]
        orders.append(order)
    return orders


def _write_matmul(node: gs.Node, orders: list[list[int]], editor: Editor) -> gs.Tensor:
    a, b = (editor.transpose(x, order) if order else x for x, order in zip(node.inputs[:2], orders, strict=True))
    if (alpha := float(node.attrs.get("alpha", 1))) != 1:
        a = editor.add("Mul", a, editor.constant("alpha", np.asarray(alpha, editor.dtype)))
    return editor.add("MatMul", a, b)


def _check_product(node: gs.Node, known: Known) -> None:
    """Refuse attributes that the Gemm or Conv would not have, and what it cannot end with."""
    alone = onnx.helper.make_node(node.op.removeprefix("Fused"), ["x", "w"], ["y"], **_product_attrs(node))
    try:
        onnx.checker.check_node(alone)
    except onnx.checker.ValidationError as error:
        raise Unfit(f"its attributes are not those of a {alone.op_type}: {error}") from None
    if node.attrs.get("activation", "") not in (*_ACTIVATIONS, "Clip"):
        raise Unfit(f"it ends with {node.attrs['activation']}")


def _write_gemm(node: gs.Node, _: None, editor: Editor) -> gs.Tensor:
    numbers = [node.attrs[f"activation_{key}"] for key in ("alpha", "beta") if f"activation_{key}" in node.attrs]
    return _activated(node, editor, editor.add("Gemm", *node.inputs, **_product_attrs(node)), numbers)


def _write_conv(node: gs.Node, _: None, editor: Editor) -> gs.Tensor:
    x, w, bias, other = _given(node, 4)
    made = editor.add("Conv", *(tensor for tensor in (x, w, bias) if tensor is not None), **_product_attrs(node))
    if other is not None:
        made = editor.add("Add", made, other)
    return _activated(node, editor, made, node.attrs.get("activation_params", []))


def _product_attrs(node: gs.Node) -> dict[str, Any]:
    return {key: value for key, value in node.attrs.items() if not key.startswith("activation")}


def _activated(node: gs.Node, editor: Editor, made: gs.Variable, numbers: Sequence[float]) -> gs.Tensor:
    name = node.attrs.get("activation", "")
    if name == "Clip":
        bounds = zip(("least", "most"), numbers, strict=False)
        limits = (editor.constant(key, np.asarray(number, editor.dtype)) for key, number in bounds)
        return editor.add("Clip", made, *limits)
    if not name:
        return made
    attrs: dict[str, Any] = dict(zip(_ACTIVATIONS[name], map(float, numbers), strict=False))
    return editor.add(name, made, **attrs)


def _check_packed_attention(node: gs.Node, known: Known) -> tuple[AttentionForm, list[int]]:
    _, weight, bias, lengths, past, mask = _given(node, 6)
    if lengths is not None or past is not None or _used(node, slice(1, None)) or node.attrs.get("do_rotary", 0):
        raise Unfit("it is given lengths, keeps keys of earlier calls, or turns positions")
    if not isinstance(weight, gs.Constant) or not isinstance(bias, gs.Constant | None):
        raise Unfit("its weight is computed")
    sizes = [int(size) for size in node.attrs.get("qkv_hidden_sizes") or [weight.shape[-1] // 3] * 3]
    widths = {tensor.shape[-1] for tensor in (weight, bias) if tensor is not None}
    if len(sizes) != 3 or len(weight.shape) != 2 or widths != {sum(sizes)}:
        raise Unfit(f"its weight is {tuple(weight.shape)}")
    return _form(node, known, sizes[0], node.inputs[0], mask), sizes


def _write_packed_attention(node: gs.Node, form: tuple[AttentionForm, list[int]], editor: Editor) -> gs.Tensor:
    attention, sizes = form
    x, weight, bias = _given(node, 3)
    ends = [0, sizes[0], sizes[0] + sizes[1], sum(sizes)]
    operands = []
    for name, start, end in zip("qkv", ends[:-1], ends[1:], strict=True):
        made = editor.add("MatMul", x, editor.constant(f"{name}_weight", values_of(weight)[:, start:end]))
        if bias is not None:
            made = editor.add("Add", made, editor.constant(f"{name}_bias", values_of(bias)[start:end]))
        operands.append(made)
    return write_attention(operands, attention, editor)


def _check_heads_attention(node: gs.Node, known: Known) -> AttentionForm:
    q, k, v, bias, padding, mask, *rest = _given(node, 10)
    if padding is not None or any(tensor is not None for tensor in rest) or _used(node, slice(1, None)):
        raise Unfit("it has a mask by length, or keeps keys of earlier calls")
    if k is None or v is None or any(len(known.shape(tensor)) != 3 for tensor in (q, k, v)):
        raise Unfit("its operands are not [batch, tokens, channels] each")
    width = known.shape(q)[-1]
    if not isinstance(bias, gs.Constant | None):
        raise Unfit("its bias is computed")
    if not isinstance(width, int):
        raise Unfit("how long its queries are is not known before the model runs")
    if isinstance(keys := known.shape(k)[-1], int) and keys != width:
        raise Unfit(f"its queries have {width} channels, its keys {keys}")
    return _form(node, known, width, k, mask)


def _write_heads_attention(node: gs.Node, form: AttentionForm, editor: Editor) -> gs.Tensor:
    *operands, bias = _given(node, 4)
    if bias is not None:
        width = form.heads * form.size
        parts = np.split(values_of(bias), [width, 2 * width])
        operands = [
            editor.add("Add", tensor, editor.constant(f"{name}_bias", part))
            for name, tensor, part in zip("qkv", operands, parts, strict=True)
        ]
    return write_attention(operands, form, editor)


def _form(node: gs.Node, known: Known, width: int, keys: gs.Tensor, mask: gs.Tensor | None) -> AttentionForm:
    heads, queries = int(node.attrs.get("num_heads", 0)), node.inputs[0]
    if heads < 1 or width % heads or len(known.shape(queries)) != 3:
        raise Unfit(f"it has {heads} heads for {width} channels")
    size = width // heads
    dtype = known.type(queries)
    return AttentionForm(
        flat=True,
        heads=heads,
        key_heads=heads,
        size=size,
        scale=float(node.attrs.get("scale") or 1 / math.sqrt(size)),
        softcap=0.0,
        seen=_seen(queries, keys, known) if node.attrs.get("unidirectional", 0) else None,
        mask=mask,
        boolean=False,
        dtype=dtype,
        softmax=dtype,
    )


def _seen(queries: gs.Tensor, keys: gs.Tensor, known: Known) -> NDArray[np.bool_]:
    """What `unidirectional` shows: the keys up to a query's own place; the CPU kernels show the last query all."""
    rows, columns = known.shape(queries)[1], known.shape(keys)[1]
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Unfit("how many tokens it has is not known before the model runs")
    seen = np.tri(rows, columns, dtype=np.bool_)
    seen[-1:] = True
    return seen


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.op if rule.op == _RMS else f"{ONNXRUNTIME}.{rule.op}": rule
        for rule in (
            _row("SkipLayerNormalization", "an Add and a LayerNormalization", 3, _write_skip_norm, _check_norm),
            _row("SkipSimplifiedLayerNormalization", "an Add and an RMS norm", 3, _write_skip_rms, _check_norm),
            _row(_RMS, "an RMS norm in parts", 2, _write_rms, _check_rms),
            _row("BiasGelu", "an Add and a Gelu", 2, _write_gelu),
            _row("FastGelu", "a Gelu by tanh", 1, _write_gelu),
            _row("Gelu", "ONNX's own Gelu", 1, _write_gelu),
            _row("QuickGelu", "a Sigmoid and a product", 1, _write_quick_gelu),
            _row("FusedMatMul", "a MatMul, its scale and Transposes apart", 2, _write_matmul, _check_matmul),
            _row("FusedGemm", "a Gemm and its activation", 2, _write_gemm, _check_product),
            _row("FusedConv", "a Conv, what is added to it, and its activation", 2, _write_conv, _check_product),
            _row("Attention", "three Linears and two products", 2, _write_packed_attention, _check_packed_attention),
            _row("MultiHeadAttention", "two products and a Softmax", 1, _write_heads_attention, _check_heads_attention),
        )
    }
)
