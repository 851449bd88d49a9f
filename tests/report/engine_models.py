"""A model with one Linear for every fate that a weight can have in an engine, named as in tests/runtime/recorded."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, SMALL = 512, 128


def five_linears(path: Path) -> Path:
    """x [N, 512] through these Linears: fc1 (2:4, Q/DQ in and out), proj (2:4, Q/DQ in, then a Relu), dense (not 2:4,
    Q/DQ in and out), float (2:4, no Q/DQ) and small (2:4, Q/DQ in and out, 128 wide).
    """
    random = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {"scale": np.float32(0.05), "zero": np.int8(0)}
    nodes: list[onnx.NodeProto] = []

    def pair(tensor: str, stem: str, scale: str = "scale", zero: str = "zero", **axis: int) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{stem}_q"], f"{stem}_q", **axis))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{stem}_q", scale, zero], [f"{stem}_dq"], f"{stem}_dq", **axis)
        )
        return f"{stem}_dq"

    def linear(name: str, read: str, width: int, *, sparse: bool, inside: bool, after: bool) -> str:
        w = random.standard_normal((WIDTH, width)).astype(np.float32)
        if sparse:
            w[0::4] = w[3::4] = 0
        constants[f"{name}_w"] = w
        weight = f"{name}_w"
        if inside:
            read = pair(read, f"/{name}/in")
            constants[f"{name}_s"], constants[f"{name}_z"] = np.full(width, 0.02, np.float32), np.zeros(width, np.int8)
            weight = pair(weight, f"/{name}/w", f"{name}_s", f"{name}_z", axis=1)
        nodes.append(helper.make_node("MatMul", [read, weight], [f"{name}_y"], f"/{name}/MatMul"))
        return pair(f"{name}_y", f"/{name}/out") if after else f"{name}_y"

    flow = linear("fc1", "x", WIDTH, sparse=True, inside=True, after=True)
    flow = linear("proj", flow, WIDTH, sparse=True, inside=True, after=False)
    nodes.append(helper.make_node("Relu", [flow], ["relu_y"], "/relu/Relu"))
    flow = linear("dense", "relu_y", WIDTH, sparse=False, inside=True, after=True)
    flow = linear("float", flow, WIDTH, sparse=True, inside=False, after=False)
    last = linear("small", flow, SMALL, sparse=True, inside=True, after=True)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", SMALL])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path
