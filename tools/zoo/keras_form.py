"""A ViT in the form that tf2onnx gives a Keras one, written by hand: TensorFlow is no package that the zoo installs.

What is of that form: the image is uint8 NHWC and normalised inside; every Conv is between Transposes; a Dense layer
is Reshape to two axes, MatMul, Add, Reshape back; a MultiHeadAttention's projections are Einsums with weights of three
axes; LayerNormalization is in parts; GELU is Erf; opset 15, dynamic batch, names with slashes and colons.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH, HEADS, DEPTH, PATCH, SIDE, CLASSES = 192, 3, 2, 16, 224, 1000
TOKENS = (SIDE // PATCH) ** 2


class _Graph:
    """Nodes and initializers as they come."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._random = np.random.default_rng(0)

    def weight(self, name: str, *shape: int, mean: float = 0.0, scale: float = 0.05) -> str:
        return self.constant(name, (self._random.standard_normal(shape) * scale + mean).astype(np.float32))

    def constant(self, name: str, value: object) -> str:
        array = np.asarray(value, np.float32 if isinstance(value, float) else None)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def dense(self, name: str, x: str, k: int, out: int) -> str:
        flat = self.node("Reshape", [x, self.constant(f"{name}/flat", [-1, k])], f"{name}/Reshape")
        y = self.node("MatMul", [flat, self.weight(f"{name}/kernel", k, out, scale=k**-0.5)], f"{name}/MatMul")
        back = self.constant(f"{name}/back", [-1, TOKENS, out])
        y = self.node("Reshape", [y, back], f"{name}/Tensordot")
        return self.node("Add", [y, self.weight(f"{name}/bias", out)], f"{name}/BiasAdd")

    def norm(self, name: str, x: str) -> str:
        mean = self.node("ReduceMean", [x], f"{name}/mean", axes=[-1], keepdims=1)
        centred = self.node("Sub", [x, mean], f"{name}/sub")
        square = self.node("Mul", [centred, centred], f"{name}/square")
        variance = self.node("ReduceMean", [square], f"{name}/variance", axes=[-1], keepdims=1)
        sum_ = self.node("Add", [variance, self.constant(f"{name}/epsilon", 1e-6)], f"{name}/add")
        deviation = self.node("Sqrt", [sum_], f"{name}/sqrt")
        inverse = self.node("Reciprocal", [deviation], f"{name}/rsqrt")
        gain = self.node("Mul", [inverse, self.weight(f"{name}/gamma", WIDTH, mean=1.0)], f"{name}/mul")
        y = self.node("Mul", [centred, gain], f"{name}/mul_1")
        return self.node("Add", [y, self.weight(f"{name}/beta", WIDTH)], f"{name}/add_1")

    def attention(self, name: str, x: str) -> str:
        side = WIDTH // HEADS
        parts = {}
        for part in ("query", "key", "value"):
            kernel = self.weight(f"{name}/{part}/kernel", WIDTH, HEADS, side, scale=WIDTH**-0.5)
            y = self.node("Einsum", [x, kernel], f"{name}/{part}/einsum", equation="abc,cde->abde")
            parts[part] = self.node("Add", [y, self.weight(f"{name}/{part}/bias", HEADS, side)], f"{name}/{part}/add")
        query = self.node("Mul", [parts["query"], self.constant(f"{name}/scale", side**-0.5)], f"{name}/scaled")
        scores = self.node("Einsum", [parts["key"], query], f"{name}/scores", equation="aecd,abcd->acbe")
        scores = self.node("Softmax", [scores], f"{name}/softmax", axis=-1)
        mixed = self.node("Einsum", [scores, parts["value"]], f"{name}/mixed", equation="acbe,aecd->abcd")
        kernel = self.weight(f"{name}/out/kernel", HEADS, side, WIDTH, scale=WIDTH**-0.5)
        y = self.node("Einsum", [mixed, kernel], f"{name}/out/einsum", equation="abcd,cde->abe")
        return self.node("Add", [y, self.weight(f"{name}/out/bias", WIDTH)], f"{name}/out/add")

    def mlp(self, name: str, x: str) -> str:
        y = self.dense(f"{name}/fc1", x, WIDTH, 4 * WIDTH)
        turned = self.node("Mul", [y, self.constant(f"{name}/root", 2**-0.5)], f"{name}/turned")
        erf = self.node("Erf", [turned], f"{name}/erf")
        half = self.node("Mul", [y, self.constant(f"{name}/half", 0.5)], f"{name}/half_of")
        one = self.node("Add", [erf, self.constant(f"{name}/one", 1.0)], f"{name}/one_more")
        return self.dense(f"{name}/fc2", self.node("Mul", [half, one], f"{name}/gelu"), 4 * WIDTH, WIDTH)


def write_keras_vit(path: Path) -> None:
    """Write the model, input uint8 [batch, 224, 224, 3], output logits [batch, 1000]."""
    g = _Graph()
    x = g.node("Cast", ["input"], "model/rescale/Cast", to=TensorProto.FLOAT)
    x = g.node("Mul", [x, g.constant("model/rescale/scale", 1 / 127.5)], "model/rescale/mul")
    x = g.node("Add", [x, g.constant("model/rescale/offset", -1.0)], "model/rescale/add")
    x = g.node("Transpose", [x], "model/patches/Transpose", perm=[0, 3, 1, 2])
    kernel = g.weight("model/patches/kernel", WIDTH, 3, PATCH, PATCH)
    x = g.node("Conv", [x, kernel], "model/patches/Conv", strides=[PATCH, PATCH], kernel_shape=[PATCH, PATCH])
    x = g.node("Transpose", [x], "model/patches/Back", perm=[0, 2, 3, 1])
    x = g.node("Reshape", [x, g.constant("model/flat", [-1, TOKENS, WIDTH])], "model/tokens")
    x = g.node("Add", [x, g.weight("model/positions", 1, TOKENS, WIDTH)], "model/embedded")
    for index in range(DEPTH):
        name = f"model/block_{index}"
        x = g.node("Add", [x, g.attention(f"{name}/attention", g.norm(f"{name}/norm1", x))], f"{name}/add")
        x = g.node("Add", [x, g.mlp(f"{name}/mlp", g.norm(f"{name}/norm2", x))], f"{name}/add_1")
    x = g.node("ReduceMean", [g.norm("model/norm", x)], "model/pool", axes=[1], keepdims=0)
    x = g.node("MatMul", [x, g.weight("model/head/kernel", WIDTH, CLASSES)], "model/head/MatMul")
    x = g.node("Add", [x, g.weight("model/head/bias", CLASSES)], "model/head/BiasAdd")
    g.node("Softmax", [x], "predictions", axis=-1)
    image = helper.make_tensor_value_info("input", TensorProto.UINT8, ["unk__1", SIDE, SIDE, 3])
    result = helper.make_tensor_value_info("predictions:0", TensorProto.FLOAT, ["unk__2", CLASSES])
    graph = helper.make_graph(g.nodes, "tf2onnx", [image], [result], g.initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), path)
