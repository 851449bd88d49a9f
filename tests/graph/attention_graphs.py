"""One attention of two heads on x[2, 16, 64], in the forms that exporters and models give it."""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from tests.graph.small_graphs import FLOAT, Array, node, normal, proto

X = [("x", FLOAT, [2, 16, 64])]
Y = [("y", FLOAT, [2, 16, 64])]
EXCHANGED = [0, 1, 3, 2]
BY_HEAD = [
    made
    for name in "qkv"
    for made in (
        node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
        node("Reshape", [f"{name}0", "heads"], [f"{name}1"]),
        node("Transpose", [f"{name}1"], [name], perm=[0, 2, 1, 3]),
    )
]
AFTER = [
    node("Transpose", ["o"], ["o1"], perm=[0, 2, 1, 3]),
    node("Reshape", ["o1", "flat"], ["o2"]),
    node("MatMul", ["o2", "wo"], ["z"]),
    node("Relu", ["z"], ["r"]),
    node("MatMul", ["r", "wz"], ["y"]),
]
CONSTANTS: dict[str, Array] = {
    **{name: normal(64, 64, seed=seed) / 8 for seed, name in enumerate(("wq", "wk", "wv", "wo", "wz"))},
    "heads": np.array([0, 0, 2, 32]),
    "flat": np.array([0, 0, 64]),
    "scale": np.array(0.18, np.float32),
    "row": normal(16, seed=8),
    "mask": normal(1, 2, 16, 16, seed=9),
    "zero": np.array(0, np.float32),
    "learned": normal(1, 2, 16, 32, seed=10),
    "gate": np.array([0.7, 0.4], np.float32).reshape(1, 2, 1, 1),
    "places": np.full((1, 2, 16, 16), 0.3 / 16, np.float32),
    "low": np.array(-3, np.float32),
    "last": np.array([-1]),
    "mix": normal(2, 2, 1, 1, seed=11),
}
SCORES = [
    node("Transpose", ["k"], ["kt"], perm=EXCHANGED),
    node("MatMul", ["q", "kt"], ["s0"]),
    node("Mul", ["s0", "scale"], ["s"]),
]
SOFTMAX = [node("Softmax", ["s"], ["p"], axis=-1)]
CONTEXT = [node("MatMul", ["p", "v"], ["o"])]
TO_LEFT = [
    node("Transpose", ["v"], ["vt"], perm=EXCHANGED),
    node("Transpose", ["p"], ["pt"], perm=EXCHANGED),
    node("MatMul", ["vt", "pt"], ["ot"]),
    node("Transpose", ["ot"], ["o"], perm=EXCHANGED),
]
KEYS_FIRST = [node("Transpose", ["q"], ["qt"], perm=EXCHANGED), node("MatMul", ["k", "qt"], ["s0"])]
MASKED = [
    node("Cast", ["s0"], ["c0"], to=FLOAT),
    node("Mul", ["c0", "scale"], ["c1"]),
    node("Add", ["c1", "row"], ["c2"]),
    node("Add", ["mask", "c2"], ["s"]),
]
GUARD = [node("IsNaN", ["p0"], ["nan"]), node("Where", ["nan", "zero", "p0"], ["p"])]

TURNED: dict[str, list[NodeProto]] = {
    "V P'": [*SCORES, *SOFTMAX, *TO_LEFT],
    "V P', a NaN guard": [*SCORES, node("Softmax", ["s"], ["p0"], axis=3), *GUARD, *TO_LEFT],
    "K Q'": [
        *KEYS_FIRST,
        node("Mul", ["s0", "scale"], ["s"]),
        node("Softmax", ["s"], ["p0"], axis=-2),
        node("Transpose", ["p0"], ["p"], perm=EXCHANGED),
        *CONTEXT,
    ],
    "K Q' with masks, V P": [
        *KEYS_FIRST,
        *MASKED,
        node("Softmax", ["s"], ["p"], axis=2),
        node("Transpose", ["v"], ["vt"], perm=EXCHANGED),
        node("MatMul", ["vt", "p"], ["ot"]),
        node("Transpose", ["ot"], ["o"], perm=EXCHANGED),
    ],
    "K Q', a Transpose before the Softmax": [
        *KEYS_FIRST,
        node("Mul", ["s0", "scale"], ["s1"]),
        node("Transpose", ["s1"], ["s"], perm=EXCHANGED),
        *SOFTMAX,
        *CONTEXT,
    ],
    "Einsum bhkq": [
        node("Einsum", ["q", "k"], ["s0"], equation="bhqd,bhkd->bhkq"),
        node("Mul", ["s0", "scale"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-2),
        node("Einsum", ["p", "v"], ["o"], equation="bhkq,bhkd->bhqd"),
    ],
}
LEARNED = [
    node("Transpose", ["k"], ["kt"], perm=EXCHANGED),
    node("MatMul", ["learned", "kt"], ["s"]),
    *SOFTMAX,
    *CONTEXT,
]
BLEND = [
    *SCORES,
    node("Softmax", ["s"], ["p0"], axis=-1),
    node("Mul", ["p0", "gate"], ["p1"]),
    node("Add", ["p1", "places"], ["p2"]),
    node("ReduceSum", ["p2", "last"], ["sum"], keepdims=0),
    node("Unsqueeze", ["sum", "last"], ["total"]),
    node("Div", ["p2", "total"], ["p"]),
    *CONTEXT,
]
MASK_OF_A_PRODUCT = [
    *SCORES[:-1],
    node("Mul", ["s0", "scale"], ["s1"]),
    node("Transpose", ["v"], ["vt"], perm=EXCHANGED),
    node("MatMul", ["v", "vt"], ["seen"]),
    node("Less", ["seen", "low"], ["hidden"]),
    node("Where", ["hidden", "low", "s1"], ["s"]),
    *SOFTMAX,
    *CONTEXT,
]
OTHERS: dict[str, list[NodeProto]] = {
    "a sum after the Softmax": [*BLEND[:-5], node("Add", ["p1", "places"], ["p"]), *CONTEXT],
    "talking heads": [
        *SCORES,
        node("Conv", ["s", "mix"], ["t"]),
        node("Softmax", ["t"], ["u"]),
        node("Conv", ["u", "mix"], ["p"]),
        *CONTEXT,
    ],
    "a Sigmoid": [*SCORES, node("Sigmoid", ["s"], ["p"]), *CONTEXT],
    "linear": [
        node("Softmax", ["q"], ["f"], axis=-1),
        node("Softmax", ["k"], ["g"], axis=-2),
        node("Transpose", ["g"], ["gt"], perm=EXCHANGED),
        node("MatMul", ["gt", "v"], ["s0"]),
        node("MatMul", ["f", "s0"], ["o"]),
    ],
}


def attention(middle: Sequence[NodeProto]) -> ModelProto:
    """The model with this between q, k, v[2, 2, 16, 32] and the context o[2, 2, 16, 32]."""
    nodes = [*BY_HEAD, *middle, *AFTER]
    read = {name for each in nodes for name in each.input}
    needed = [each for each in nodes if any(name in read or name == "y" for name in each.output)]
    unread = {"q", "k", "v"} - read
    needed = [each for each in needed if each.output[0][0] not in unread or each.output[0] not in _of(unread)]
    read = {name for each in needed for name in each.input}
    return proto(needed, X, Y, {name: values for name, values in CONSTANTS.items() if name in read}, opset=20)


def _of(names: set[str]) -> set[str]:
    return {f"{name}{suffix}" for name in names for suffix in ("", "0", "1")}
