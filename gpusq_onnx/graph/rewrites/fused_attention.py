"""Attention (opset 23) as the operators that it stands for, so that Q/DQ pairs reach its two products.

    Q * scale, Transpose(K) -> MatMul -> softcap * Tanh(. / softcap) -> + mask -> Softmax -> MatMul(., V)

The scale goes to Q's side, as the kernels of explicit quantisation want it (NVIDIA's rule: after 1/sqrt(d)). Three
dimensions [B, T, H*d] are taken to [B, H, T, d] and back; keys of fewer heads are repeated (grouped queries).

Only where it pays: above `MAX_TOKENS` the fused FP16 kernel wins, and the products stay float anyway.

Source: ONNX Attention-23 and its function body. Limits: no caches (past and present keys), no output of the scores, no
padding counts (opset 24). A query that may see no key gets NaN here, as it does in onnxruntime up to 1.31.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.qdq.pairs import MAX_TOKENS
from gpusq_onnx.graph.rewrites.rule import Editor, Known, Unfit
from gpusq_onnx.graph.shapes import Dim

_PAST, _LENGTHS = (4, 5), 6


@dataclass(frozen=True, kw_only=True)
class AttentionForm:
    """What the operator computes.

    Attributes:
        flat: whether its operands are [B, T, H*d].
        heads, key_heads: of the queries, and of keys and values.
        size: of one head.
        scale, softcap: 0 is no softcap.
        seen: [queries, keys], true where the operator lets a query see a key; None: everywhere.
        mask: added to the scores, or true where a key is seen.
        dtype, softmax: types of the operands and of the softmax.
    """

    flat: bool
    heads: int
    key_heads: int
    size: int
    scale: float
    softcap: float
    seen: NDArray[np.bool_] | None
    mask: gs.Tensor | None
    boolean: bool
    dtype: np.dtype[Any]
    softmax: np.dtype[Any]


def check_attention(node: gs.Node, known: Known) -> AttentionForm:
    """What the node computes. Raises Unfit."""
    given = [not tensor.is_empty() for tensor in node.inputs]
    if any(given[i] for i in _PAST if i < len(given)) or any(t.name for t in node.outputs[1:]):
        raise Unfit("it keeps keys of earlier calls, or returns its scores")
    if any(given[_LENGTHS:]):
        raise Unfit("it is reported how many keys are padding")
    q, k, v = (known.shape(tensor) for tensor in node.inputs[:3])
    if {len(q), len(k), len(v)} not in ({3}, {4}):
        raise Unfit(f"its operands have {len(q)}, {len(k)} and {len(v)} dimensions")
    flat = len(q) == 3
    heads = _number(node.attrs.get("q_num_heads") if flat else q[1], "how many heads it has")
    key_heads = _number(node.attrs.get("kv_num_heads") if flat else k[1], "how many heads its keys have")
    rows, columns = _number(q[-2], "how many queries it has"), _number(k[-2], "how many keys it has")
    if max(rows, columns) > MAX_TOKENS:
        raise Unfit(f"{max(rows, columns)} tokens: above {MAX_TOKENS} the fused kernel is left alone")
    width = _number(q[-1], "how long its queries are")
    size = width // heads if flat else width
    scale = float(node.attrs.get("scale") or 1 / math.sqrt(size))
    mask = node.inputs[3] if len(given) > 3 and given[3] else None
    if mask is not None and known.shape(mask)[-1:] not in ((columns,), (1,)):
        raise Unfit("its mask is not known to cover every key")
    dtype = known.type(node.inputs[0])
    precision = int(node.attrs.get("softmax_precision") or 0)
    softmax = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(precision)) if precision else dtype
    return AttentionForm(
        flat=flat,
        heads=heads,
        key_heads=key_heads,
        size=size,
        scale=scale,
        softcap=float(node.attrs.get("softcap") or 0),
        seen=np.tri(rows, columns, dtype=np.bool_) if node.attrs.get("is_causal", 0) else None,
        mask=mask,
        boolean=mask is not None and known.type(mask).kind == "b",
        dtype=dtype,
        softmax=softmax,
    )


def rewrite_attention(node: gs.Node, form: AttentionForm, editor: Editor) -> gs.Tensor:
    """The nodes that compute it; returns the context."""
    return write_attention(node.inputs[:3], form, editor)


def write_attention(operands: Sequence[gs.Tensor], form: AttentionForm, editor: Editor) -> gs.Tensor:
    """Attention of these queries, keys and values."""
    heads = (form.heads, form.key_heads, form.key_heads)
    q, k, v = (_by_head(editor, tensor, n, form) for tensor, n in zip(operands, heads, strict=True))
    if form.heads != form.key_heads:
        repeat = editor.numbers(
            "heads", [h for h in range(form.key_heads) for _ in range(form.heads // form.key_heads)]
        )
        k, v = (editor.add("Gather", tensor, repeat, axis=1) for tensor in (k, v))
    if form.scale != 1:
        q = editor.add("Mul", q, editor.constant("scale", np.asarray(form.scale, form.dtype)))
    scores: gs.Tensor = editor.add("MatMul", q, editor.add("Transpose", k, perm=[0, 1, 3, 2]))
    if form.softcap:
        cap = editor.constant("softcap", np.asarray(form.softcap, form.dtype))
        scores = editor.add("Mul", editor.add("Tanh", editor.add("Div", scores, cap)), cap)
    scores = _masked(editor, scores, form)
    if form.softmax != form.dtype:
        wide = editor.add("Cast", scores, dtype=form.softmax, to=onnx.helper.np_dtype_to_tensor_dtype(form.softmax))
        soft = editor.add("Softmax", wide, dtype=form.softmax, axis=-1)
        weights = editor.add("Cast", soft, to=onnx.helper.np_dtype_to_tensor_dtype(form.dtype))
    else:
        weights = editor.add("Softmax", scores, axis=-1)
    context = editor.add("MatMul", weights, v)
    if not form.flat:
        return context
    return editor.reshape(editor.add("Transpose", context, perm=[0, 2, 1, 3]), [0, 0, -1])


def _by_head(editor: Editor, tensor: gs.Tensor, heads: int, form: AttentionForm) -> gs.Tensor:
    if not form.flat:
        return tensor
    return editor.add("Transpose", editor.reshape(tensor, [0, 0, heads, -1]), perm=[0, 2, 1, 3])


def _masked(editor: Editor, scores: gs.Tensor, form: AttentionForm) -> gs.Tensor:
    if form.seen is not None:
        scores = editor.add("Add", scores, editor.constant("causal", _additive(form.seen, form)))
    if form.mask is None:
        return scores
    mask = form.mask
    if form.boolean:
        ends = [
            editor.constant(name, _additive(np.asarray(seen), form))
            for name, seen in (("seen", True), ("hidden", False))
        ]
        mask = editor.add("Where", mask, *ends)
    return editor.add("Add", scores, mask)


def _additive(seen: Any, form: AttentionForm) -> Any:
    return np.where(seen, 0.0, -np.inf).astype(form.dtype)


def _number(size: Dim, what: str) -> int:
    if not isinstance(size, int):
        raise Unfit(f"{what} is not known before the model runs")
    return size
