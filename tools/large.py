"""Vision transformers of any size with random weights, written without ever holding the model: for measuring memory.

The graph is what torch exports of a pre-norm ViT (patch Conv, class token, LayerNormalization, packed qkv, GELU in
parts, residual Adds); weights are drawn one at a time and go straight to PATH.data. Activations stay of order 1 at any
depth, so FP16 and INT8 hold them. Run: python -m tools.large vit_l OUT.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Size:
    """Width, depth, heads, and side of the image and of a patch."""

    width: int
    depth: int
    heads: int
    image: int = 224
    patch: int = 16
    classes: int = 1000


SIZES = {
    "tiny": Size(192, 12, 3),
    "vit_b": Size(768, 12, 12),
    "vit_b_640": Size(384, 12, 6, image=640),  # 1601 tokens: activations outweigh the weights
    "vit_l": Size(1024, 24, 16),  # 1.2 GB
    "vit_h": Size(1280, 32, 16, patch=14),  # 2.5 GB: above protobuf's limit
}


class _Writer:
    """The nodes and initializers of a graph, values in the data file as they come."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._rng = np.random.default_rng(seed)
        self._data = path.with_name(path.name + ".data").open("wb")

    def close(self) -> None:
        self._data.close()

    def weight(self, name: str, *shape: int, scale: float = 0.02, mean: float = 0.0) -> str:
        """A random float32 initializer in the data file."""
        values = self._rng.standard_normal(shape, np.float32) * np.float32(scale) + np.float32(mean)
        offset = self._data.tell()
        self._data.write(values.data)
        tensor = TensorProto(name=name, data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        places = {"location": self.path.name + ".data", "offset": offset, "length": values.nbytes}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def number(self, name: str, value: float | int | Sequence[int]) -> str:
        """A small constant: a float, or integers."""
        array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output.replace('.', '/')}", **attributes))
        return output

    def linear(self, name: str, x: str, k: int, n: int) -> str:
        product = self.node("MatMul", [x, self.weight(f"{name}.weight", k, n, scale=k**-0.5)], f"{name}.matmul")
        return self.node("Add", [product, self.weight(f"{name}.bias", n)], f"{name}.out")

    def norm(self, name: str, x: str, width: int) -> str:
        parameters = [self.weight(f"{name}.weight", width, mean=1.0), self.weight(f"{name}.bias", width)]
        return self.node("LayerNormalization", [x, *parameters], f"{name}.out", axis=-1, epsilon=1e-6)


def write_vit(path: Path, size: Size, seed: int = 0) -> None:
    """Write the ViT to `path` and its weights to `PATH.data`."""
    made = _Writer(path, seed)
    try:
        _vit(made, size)
        ends = [
            helper.make_tensor_value_info("pixel_values", FLOAT, ["batch", 3, size.image, size.image]),
            helper.make_tensor_value_info("logits", FLOAT, ["batch", size.classes]),
        ]
        graph = helper.make_graph(made.nodes, "vit", ends[:1], ends[1:], made.initializers)
        model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path.write_bytes(model.SerializeToString())
    finally:
        made.close()


def _vit(made: _Writer, size: Size) -> None:
    width, patch = size.width, size.patch
    made.number("half", 0.5), made.number("one", 1.0), made.number("root", 2**0.5)
    made.number("qk_scale", (width // size.heads) ** -0.5)
    kernel = made.weight("patch.weight", width, 3, patch, patch)
    parameters = [kernel, made.weight("patch.bias", width)]
    x = made.node("Conv", ["pixel_values", *parameters], "patch.conv", strides=[patch, patch])
    x = made.node("Reshape", [x, made.number("patch.shape", [0, width, -1])], "patch.flat")
    x = made.node("Transpose", [x], "patch.tokens", perm=[0, 2, 1])
    # A class token of every image: zero times a patch, plus the token.
    first = [made.number(f"cls.{name}", value) for name, value in (("from", [0]), ("to", [1]), ("axis", [1]))]
    token = made.node("Slice", [x, *first], "cls.first")
    token = made.node("Mul", [token, made.number("zero", 0.0)], "cls.empty")
    token = made.node("Add", [token, made.weight("cls", 1, 1, width)], "cls.token")
    x = made.node("Concat", [token, x], "tokens", axis=1)
    tokens = (size.image // patch) ** 2 + 1
    x = made.node("Add", [x, made.weight("positions", 1, tokens, width)], "embedded")
    for index in range(size.depth):
        x = _block(made, f"blocks.{index}", x, size)
    x = made.node("Gather", [made.norm("norm", x, width), made.number("index", 0)], "cls.out", axis=1)
    head = [made.weight("head.weight", size.classes, width), made.weight("head.bias", size.classes)]
    made.node("Gemm", [x, *head], "logits", transB=1)


def _block(made: _Writer, name: str, x: str, size: Size) -> str:
    width, heads = size.width, size.heads
    y = made.linear(f"{name}.attn.qkv", made.norm(f"{name}.norm1", x, width), width, 3 * width)
    shape = made.number(f"{name}.attn.split", [0, -1, 3, heads, width // heads])
    y = made.node("Reshape", [y, shape], f"{name}.attn.heads")
    y = made.node("Transpose", [y], f"{name}.attn.parts", perm=[2, 0, 3, 1, 4])
    index = [made.number(f"{name}.attn.index{i}", i) for i in range(3)]
    q, k, v = (made.node("Gather", [y, index[i]], f"{name}.attn.{part}", axis=0) for i, part in enumerate("qkv"))
    q = made.node("Mul", [q, "qk_scale"], f"{name}.attn.scaled")
    k = made.node("Transpose", [k], f"{name}.attn.flipped", perm=[0, 1, 3, 2])
    scores = made.node("Softmax", [made.node("MatMul", [q, k], f"{name}.attn.scores")], f"{name}.attn.softmax", axis=-1)
    y = made.node("MatMul", [scores, v], f"{name}.attn.context")
    y = made.node("Transpose", [y], f"{name}.attn.back", perm=[0, 2, 1, 3])
    y = made.node("Reshape", [y, made.number(f"{name}.attn.join", [0, -1, width])], f"{name}.attn.joined")
    x = made.node("Add", [x, made.linear(f"{name}.attn.proj", y, width, width)], f"{name}.attn.sum")
    y = made.linear(f"{name}.mlp.fc1", made.norm(f"{name}.norm2", x, width), width, 4 * width)
    e = made.node("Erf", [made.node("Div", [y, "root"], f"{name}.mlp.div")], f"{name}.mlp.erf")
    y = made.node("Mul", [y, made.node("Add", [e, "one"], f"{name}.mlp.add")], f"{name}.mlp.mul")
    y = made.linear(f"{name}.mlp.fc2", made.node("Mul", [y, "half"], f"{name}.mlp.gelu"), 4 * width, width)
    return made.node("Add", [x, y], f"{name}.sum")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="write a ViT with random weights")
    arguments.add_argument("size", choices=SIZES)
    arguments.add_argument("path", type=Path)
    given = arguments.parse_args()
    write_vit(given.path, SIZES[given.size])
