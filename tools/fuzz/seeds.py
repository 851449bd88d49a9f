"""Small legal models to break: transformer blocks, layout operators, quantised weights, subgraphs, a function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

WIDTH = 16


def block(opset: int = 18) -> ModelProto:
    """A patch embedding, one attention block and a head, as exporters write them."""
    made = _Graph()
    x = made.add("Conv", ["image", made.weight("patch", WIDTH, 3, 4, 4)], kernel_shape=[4, 4], strides=[4, 4])
    x = made.add("Transpose", [made.add("Reshape", [x, made.ints("tokens", 0, WIDTH, 4)])], perm=[0, 2, 1])
    q, k, v = (made.linear(x, name, WIDTH, WIDTH) for name in "qkv")
    scores = made.add("MatMul", [q, made.add("Transpose", [k], perm=[0, 2, 1])])
    mixed = made.add("MatMul", [made.add("Softmax", [scores], axis=-1), v])
    x = made.add("Add", [x, made.linear(mixed, "proj", WIDTH, WIDTH)])
    normed = made.add("LayerNormalization", [x, made.weight("gain", WIDTH), made.weight("shift", WIDTH)], axis=-1)
    hidden = made.add("Relu", [made.linear(normed, "fc1", WIDTH, 2 * WIDTH)])
    x = made.add("Add", [x, made.linear(hidden, "fc2", 2 * WIDTH, WIDTH)])
    pooled = made.add("ReduceMean", [x, made.ints("axes", 1)], keepdims=0)
    made.add("Gemm", [pooled, made.weight("head", 8, WIDTH), made.weight("bias", 8)], "logits", transB=1)
    return made.model([("image", ["N", 3, 8, 8])], [("logits", ["N", 8])], opset)


def laid_out() -> ModelProto:
    """A weight after every operator that only lays out, a Constant node, a Cast and a Slice."""
    made = _Graph()
    w = made.add("Transpose", [made.weight("w", WIDTH, WIDTH)], perm=[1, 0])
    w = made.add("Identity", [made.add("Cast", [w], to=TensorProto.FLOAT)])
    x = made.add("MatMul", ["x", w])
    first, second = made.add("Split", [made.weight("both", 2 * WIDTH, WIDTH)], axis=0, num_outputs=2, outputs=2)
    x = made.add("Gemm", [made.add("Gemm", [x, first], transB=1), second])
    part = made.add("Slice", [made.weight("large", WIDTH, 3 * WIDTH), *(made.ints(n, v) for n, v in _SLICE)])
    x = made.add("MatMul", [x, part])
    made.nodes.append(helper.make_node("Constant", [], ["eps"], value_float=0.5))
    made.add("Add", [x, "eps"], "y")
    return made.model([("x", ["N", WIDTH])], [("y", ["N", WIDTH])])


_SLICE = (("starts", 4), ("ends", 4 + WIDTH), ("slice_axes", 1))


def controlled() -> ModelProto:
    """An If whose branches read from outside, a local function, and metadata of an earlier run."""
    made = _Graph()
    branches = []
    for name in ("yes", "no"):
        inner = _Graph(name)
        inner.add("MatMul", ["x", "w" if name == "yes" else inner.weight("own", WIDTH, WIDTH)], f"{name}_out")
        branches.append(helper.make_graph(inner.nodes, name, [], [_value(f"{name}_out", None)], inner.initializers))
    made.weight("w", WIDTH, WIDTH)
    total = made.add("ReduceSum", ["x"], keepdims=0)
    test = made.add("Less", [total, made.weight("limit")])
    x = made.add("If", [test], then_branch=branches[0], else_branch=branches[1])
    x = made.add("MatMul", [made.add("Twice", [x], domain="local"), made.weight("last", WIDTH, WIDTH)], "y")
    model = made.model([("x", [4, WIDTH])], [("y", [4, WIDTH])])
    body = helper.make_node("Add", ["a", "a"], ["b"])
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], [body], [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    helper.set_model_props(model, {"pkg.gpusq_onnx.history": '[{"version": "0"}]', "author": "somebody"})
    return model


def quantised() -> ModelProto:
    """INT8 codes and Q/DQ pairs."""
    made = _Graph()
    zero, scale = made.array("zero", np.zeros((), np.int8)), made.array("scale", np.array(0.05, np.float32))
    x = made.add("DequantizeLinear", [made.add("QuantizeLinear", ["x", scale, zero]), scale, zero])
    codes = made.array("codes", np.arange(WIDTH * WIDTH, dtype=np.int8).reshape(WIDTH, WIDTH))
    scales, zeros = made.weight("scales", WIDTH), made.array("zeros", np.zeros(WIDTH, np.int8))
    made.add("MatMul", [x, made.add("DequantizeLinear", [codes, scales, zeros], axis=1)], "y")
    return made.model([("x", ["N", WIDTH])], [("y", ["N", WIDTH])])


def fused() -> ModelProto:
    """A block as onnxruntime saves what it has optimised: attention, norms, activations and products of its own."""
    made, own = _Graph(), {"domain": "com.microsoft"}
    packed = [made.weight("qkv", WIDTH, 3 * WIDTH), made.weight("qkv_b", 3 * WIDTH)]
    mixed = made.add("Attention", ["x", *packed], num_heads=2, **own)
    norm = [made.weight("gain", WIDTH), made.weight("shift", WIDTH), made.weight("proj_b", WIDTH)]
    product = made.add("FusedMatMul", [mixed, made.weight("proj", WIDTH, WIDTH)], transB=1, alpha=0.5, **own)
    made.nodes.append(
        helper.make_node("SkipLayerNormalization", ["x", product, *norm], ["normed", "", "", "total"], "skip", **own)
    )
    hidden = made.add("MatMul", ["normed", made.weight("fc1", WIDTH, 2 * WIDTH)])
    hidden = made.add("BiasGelu", [hidden, made.weight("fc1_b", 2 * WIDTH)], **own)
    hidden = made.add("QuickGelu", [made.linear(hidden, "fc2", 2 * WIDTH, WIDTH)], **own)
    query = made.add("MultiHeadAttention", [hidden, "total", "total"], num_heads=4, **own)
    pooled = made.add("ReduceMean", [query, made.ints("axes", 1)], keepdims=0)
    head = [made.weight("head", 8, WIDTH), made.weight("head_b", 8)]
    made.add("FusedGemm", [pooled, *head], "y", transB=1, activation="Relu", **own)
    model = made.model([("x", ["N", 6, WIDTH])], [("y", ["N", 8])])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


SEEDS: dict[str, Callable[[], ModelProto]] = {
    "block": block,
    "laid_out": laid_out,
    "controlled": controlled,
    "quantised": quantised,
    "fused": fused,
}


class _Graph:
    """A graph in the making."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list = []
        self.initializers: list = []
        self._prefix = prefix
        self._random = np.random.default_rng(7)

    def array(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.array(name, np.abs(self._random.standard_normal(shape)).astype(np.float32) + 0.01)

    def ints(self, name: str, *values: int) -> str:
        return self.array(name, np.array(values, np.int64))

    def add(self, op: str, inputs: list[str], output: str = "", *, outputs: int = 1, **attributes) -> str | list[str]:
        names = [output or f"{self._prefix}{op}_{len(self.nodes)}_{place}" for place in range(outputs)]
        label = f"{self._prefix}{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, names, name=label, **attributes))
        return names if outputs > 1 else names[0]

    def linear(self, x: str, name: str, wide: int, narrow: int) -> str:
        product = self.add("MatMul", [x, self.weight(name, wide, narrow)])
        return self.add("Add", [product, self.weight(f"{name}_b", narrow)])

    def model(self, inputs, outputs, opset: int = 18) -> ModelProto:
        graph = helper.make_graph(
            self.nodes, "seed", [_value(*v) for v in inputs], [_value(*v) for v in outputs], self.initializers
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _value(name: str, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
