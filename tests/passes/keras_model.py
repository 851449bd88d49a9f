"""A transformer as tf2onnx writes Keras's: channels last, Einsum attention, opset 15, a uint8 image."""

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

WIDTH, HEADS, SIZE, PATCH, HIDDEN = 32, 2, 16, 4, 64


def keras_vit(path: Path, blocks: int = 2, *, uint8: bool = True) -> ModelProto:
    """x [N, 16, 16, 3] in 0..255 -> logits [N, 10], written to `path`."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}  # type: ignore[type-arg]

    def constant(name: str, *shape: int, scale: float | None = None) -> str:
        fan = float(np.prod(shape[:-1])) if len(shape) > 1 else 1.0
        constants[name] = (rng.standard_normal(shape) * (fan**-0.5 if scale is None else scale)).astype(np.float32)
        return name

    def add(op: str, name: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def norm(stem: str, x: str) -> str:
        """LayerNormalization in parts, as tf2onnx leaves it."""
        constants.setdefault("eps", np.float32(1e-6).reshape(()))
        mean = add("ReduceMean", f"{stem}/mean", x, axes=[-1])
        apart = add("Sub", f"{stem}/sub", x, mean)
        variance = add("ReduceMean", f"{stem}/var", add("Mul", f"{stem}/square", apart, apart), axes=[-1])
        root = add("Sqrt", f"{stem}/sqrt", add("Add", f"{stem}/eps_add", variance, "eps"))
        constants[f"{stem}/gamma"], constants[f"{stem}/beta"] = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
        scaled = add("Mul", f"{stem}/scale", add("Div", f"{stem}/div", apart, root), f"{stem}/gamma")
        return add("Add", f"{stem}/shift", scaled, f"{stem}/beta")

    def projection(stem: str, x: str) -> str:
        """Keras MultiHeadAttention's EinsumDense."""
        kernel = constant(f"{stem}/kernel", WIDTH, HEADS, WIDTH // HEADS, scale=WIDTH**-0.5)
        made = add("Einsum", f"{stem}/einsum", x, kernel, equation="abc,cde->abde")
        return add("Add", f"{stem}/add", made, constant(f"{stem}/bias", HEADS, WIDTH // HEADS, scale=0.1))

    def dense(stem: str, x: str, k: int, n: int) -> str:
        """Keras Dense on [N, T, k]: flattened to two dimensions around a MatMul."""
        constants[f"{stem}/flat"], constants[f"{stem}/back"] = (
            np.array([-1, k]),
            np.array([-1, (SIZE // PATCH) ** 2, n]),
        )
        flat = add("Reshape", f"{stem}/Reshape", x, f"{stem}/flat")
        made = add("MatMul", f"{stem}/MatMul", flat, constant(f"{stem}/kernel", k, n))
        made = add("Reshape", f"{stem}/Reshape_1", made, f"{stem}/back")
        return add("Add", f"{stem}/BiasAdd", made, constant(f"{stem}/bias", n, scale=0.1))

    image = add("Cast", "vit/Cast", "x", to=TensorProto.FLOAT) if uint8 else "x"
    constants |= {"rescale": np.float32(1 / 127.5).reshape(()), "one": np.float32(1).reshape(())}
    image = add("Sub", "vit/sub", add("Mul", "vit/rescale", image, "rescale"), "one")
    kernel = constant("vit/patch/kernel", WIDTH, 3, PATCH, PATCH, scale=48**-0.5)
    first = add("Transpose", "vit/patch/to_nchw", image, perm=[0, 3, 1, 2])
    patch = add("Conv", "vit/patch/Conv2D", first, kernel, strides=[PATCH, PATCH], kernel_shape=[PATCH, PATCH])
    constants["vit/tokens"] = np.array([-1, (SIZE // PATCH) ** 2, WIDTH])
    x = add("Reshape", "vit/tokens_of", add("Transpose", "vit/patch/to_nhwc", patch, perm=[0, 2, 3, 1]), "vit/tokens")
    constants["vit/scale"] = np.float32((WIDTH // HEADS) ** -0.5).reshape(())
    for index in range(blocks):
        stem = f"vit/block{index}"
        normed = norm(f"{stem}/ln1", x)
        q, k, v = (projection(f"{stem}/mha/{letter}", normed) for letter in ("query", "key", "value"))
        scores = add(
            "Einsum", f"{stem}/mha/scores", k, add("Mul", f"{stem}/mha/Mul", q, "vit/scale"), equation="aecd,abcd->acbe"
        )
        weights = add("Softmax", f"{stem}/mha/softmax", scores, axis=-1)
        context = add("Einsum", f"{stem}/mha/context", weights, v, equation="acbe,aecd->abcd")
        out = constant(f"{stem}/mha/out/kernel", HEADS, WIDTH // HEADS, WIDTH)
        made = add("Einsum", f"{stem}/mha/out/einsum", context, out, equation="abcd,cde->abe")
        made = add("Add", f"{stem}/mha/out/add", made, constant(f"{stem}/mha/out/bias", WIDTH, scale=0.1))
        x = add("Add", f"{stem}/add", made, x)
        hidden = dense(f"{stem}/mlp/fc1", norm(f"{stem}/ln2", x), WIDTH, HIDDEN)
        gate = add("Sigmoid", f"{stem}/mlp/sigmoid", hidden)
        x = add(
            "Add",
            f"{stem}/add_1",
            dense(f"{stem}/mlp/fc2", add("Mul", f"{stem}/mlp/swish", hidden, gate), HIDDEN, WIDTH),
            x,
        )
    pooled = add("ReduceMean", "vit/pool", norm("vit/ln", x), axes=[1], keepdims=0)
    logits = add("MatMul", "vit/head/MatMul", pooled, constant("vit/head/kernel", WIDTH, 10))
    nodes.append(
        helper.make_node("Add", [logits, constant("vit/head/bias", 10, scale=0.1)], ["logits"], "vit/head/BiasAdd")
    )
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tf2onnx",
        [helper.make_tensor_value_info("x", kind, ["unk__1", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["unk__2", 10])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, producer_name="tf2onnx", opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path))
    return model
