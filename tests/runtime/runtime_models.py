"""Small ONNX models for the tests of gpusq_onnx.runtime: legal, and broken in one way each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT, CLASSES = 16, 8


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any],
    *,
    batch: int | str = "N",
    outputs: Sequence[str] = ("y",),
    width: int | str = INPUT,
) -> Path:
    """One input x [batch, width], outputs [batch, CLASSES], float32, opset 21."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, CLASSES]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((INPUT, CLASSES)).astype(np.float32)


def linear(path: Path, w: np.ndarray | None = None, *, batch: int | str = "N") -> Path:
    w = weight() if w is None else w
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], {"w": w}, batch=batch)


def two_outputs(path: Path, scale: float) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Mul", ["y", "s"], ["z"])]
    return save(path, nodes, {"w": weight(), "s": np.float32(scale)}, outputs=("y", "z"))


QDQ_SCALES = {"xs": np.float32(0.05), "ws": np.linspace(0.01, 0.02, CLASSES, dtype=np.float32)}
QDQ_WEIGHT = np.random.default_rng(1).integers(-127, 128, (INPUT, CLASSES)).astype(np.int8)


def qdq_linear(path: Path, *, zero_point: int = 0, dtype: type = np.int8, int32_bias: bool = False) -> Path:
    """x → Q → DQ → MatMul(INT8 weight → DQ); legal as it is, and illegal for TensorRT by any of the options."""
    constants: dict[str, Any] = {
        **QDQ_SCALES,
        "xz": dtype(zero_point),
        "w": QDQ_WEIGHT,
        "wz": np.zeros(CLASSES, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="q_x"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="dq_x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="dq_w", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["mm" if int32_bias else "y"], name="mm"),
    ]
    if int32_bias:
        constants |= {
            "b": np.arange(CLASSES, dtype=np.int32),
            "bs": np.full(CLASSES, 1e-3, np.float32),
            "bz": np.zeros(CLASSES, np.int32),
        }
        nodes += [
            helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], name="dq_b", axis=0),
            helper.make_node("Add", ["mm", "bd"], ["y"], name="add"),
        ]
    return save(path, nodes, constants)


def qdq_add(path: Path) -> Path:
    """QDQ(QDQ(x w0, 0.03) + QDQ(x w3, 0.07), 0.1): onnxruntime's optimiser fuses the sum."""

    def pair(source: str, scale: str, target: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [source, scale, "z"], [source + "q"]),
            helper.make_node("DequantizeLinear", [source + "q", scale, "z"], [target]),
        ]

    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["m"]),
        helper.make_node("MatMul", ["x", "w3"], ["k"]),
        *pair("m", "a", "md"),
        *pair("k", "b", "kd"),
        helper.make_node("Add", ["md", "kd"], ["s"]),
        *pair("s", "c", "y"),
    ]
    scales = {"a": np.float32(0.03), "b": np.float32(0.07), "c": np.float32(0.1), "z": np.int8(0)}
    return save(path, nodes, {**scales, "w0": weight(0), "w3": weight(3)})


def qlinear_matmul(path: Path) -> Path:
    constants = {"xs": np.float32(0.1), "z": np.int8(0), "w": QDQ_WEIGHT, "ws": np.float32(0.01), "ys": np.float32(0.2)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["xq"], name="q_x"),
        helper.make_node("QLinearMatMul", ["xq", "xs", "z", "w", "ws", "z", "ys", "z"], ["yq"], name="qmm"),
        helper.make_node("DequantizeLinear", ["yq", "ys", "z"], ["y"], name="dq_y"),
    ]
    return save(path, nodes, constants)


def tokens(path: Path) -> Path:
    """(words[ids] + kinds[types]) mask → y, as BERT reads text: 50 words, 2 kinds, INT64 throughout."""
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["a"]),
        helper.make_node("Gather", ["kinds", "types"], ["b"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["c"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Mul", ["sum", "c"], ["y"]),
    ]
    tables = {"words": np.ones((50, 4), np.float32), "kinds": np.ones((2, 4), np.float32), "last": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", 12]) for name in ("ids", "types", "mask")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 12, 4])],
        [numpy_helper.from_array(value, name) for name, value in tables.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path
