"""Biases that are infinite in steps of FP16 scales: onnxruntime's default session computes them as they are written."""

from collections.abc import Sequence

import numpy as np
import pytest
from small_graphs import FLOAT, model, node, proto

from gpusq_onnx.graph import io
from gpusq_onnx.graph.fp16.biases import protect_biases
from gpusq_onnx.graph.fp16.policy import kept_single
from gpusq_onnx.graph.fp16.rewrite import halve
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.runtime.ort import Session

WEIGHT_SCALE = np.float32(2.0**-12)


def quantised(op: str, bias: float, between: list[str], rows: Sequence[str] = ("n",)) -> Model:
    """x[rows, 16] and w by codes, a Conv, a Gemm or MatMul and Add with a bias, `between`, a pair, in FP16 inside."""
    rng = np.random.default_rng(0)
    conv = op == "Conv"
    codes = rng.integers(-127, 128, (8, 16, 1, 1) if conv else (16, 8)).astype(np.int8)
    constants = {
        "w": codes, "ws": np.full(8, WEIGHT_SCALE), "wz": np.zeros(8, np.int8), "s": np.float32(2.0**-10),
        "z": np.int8(0), "out": np.float32(2.0**-5), "bias": np.linspace(-bias, bias, 8, dtype=np.float32),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0 if conv else 1),
        *(
            [node("MatMul", ["xd", "wd"], ["product"]), node("Add", ["product", "bias"], ["h0"])]
            if op == "MatMul"
            else [node(op, ["xd", "wd", "bias"], ["h0"])]
        ),
        *(node(name, [f"h{i}"], [f"h{i + 1}"]) for i, name in enumerate(between)),
        node("QuantizeLinear", [f"h{len(between)}", "out", "z"], ["yq"]),
        node("DequantizeLinear", ["yq", "out", "z"], ["y"]),
    ]
    shape = ["n", 16, 3, 3] if conv else [*rows, 16]
    made = model(proto(nodes, [("x", FLOAT, shape)], [("y", FLOAT, None)], constants))
    structure = analyse(made)
    halve(made, structure.types, set(kept_single(made, structure.flow, structure.types, ())))
    return made


def results(made: Model) -> list[np.ndarray]:
    x = np.random.default_rng(1).uniform(-0.1, 0.1, (2, 16, 3, 3)).astype(np.float32)
    x = x if len(made.inputs()[0].shape) == 4 else x[:, :, 0, 0]
    return [Session(io.to_bytes(made), optimize=optimize).run({"x": x})["y"] for optimize in (False, True)]


@pytest.mark.parametrize("between", [[], ["Relu"]], ids=["plain", "relu"])
@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_a_large_bias_is_written_so_that_a_default_session_keeps_it(op: str, between: list[str]) -> None:
    made = quantised(op, 3.0, between)
    assert len(protect_biases(made, infer_shapes(made)[0])) == 1
    assert ("Add" in [n.op for n in made.graph.nodes]) == (op != "Gemm")
    as_written, default = results(made)
    assert np.abs(as_written).max() > 1
    np.testing.assert_allclose(default, as_written, atol=2.0**-5)
    assert protect_biases(made, infer_shapes(made)[0]) == []


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_the_pair_is_still_the_output_of_the_weight(op: str) -> None:
    made = quantised(op, 3.0, [])
    protect_biases(made, infer_shapes(made)[0])
    (site,) = analyse(made).sites
    assert site.output.outputs[0].op == "QuantizeLinear"


def test_a_bias_that_is_finite_stays() -> None:
    made = quantised("Conv", 2.0**-9, [])
    assert protect_biases(made, infer_shapes(made)[0]) == []


def test_a_bias_that_no_pair_follows_stays() -> None:
    made = quantised("Conv", 3.0, ["Sigmoid"])
    assert protect_biases(made, infer_shapes(made)[0]) == []


def test_a_product_of_one_axis_keeps_it():
    made = quantised("MatMul", 3.0, [], rows=())
    assert len(protect_biases(made, infer_shapes(made)[0])) == 1
    x = np.random.default_rng(1).uniform(-0.1, 0.1, 16).astype(np.float32)
    as_written, default = (
        Session(io.to_bytes(made), optimize=optimize).run({"x": x})["y"] for optimize in (False, True)
    )
    assert as_written.shape == (8,)
    np.testing.assert_allclose(default, as_written, atol=2.0**-5)
