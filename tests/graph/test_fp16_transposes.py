"""Transposes before Linears in FP16 that end onnxruntime's process: moved after them, to the same result."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import HALF, model, node, proto

from gpusq_onnx.graph import io
from gpusq_onnx.graph.fp16.transposes import move_transposes
from gpusq_onnx.graph.model import Model
from gpusq_onnx.runtime.trial import Trials

SIZES = {3: (4, 5, 8), 4: (4, 3, 5, 8)}
RNG = np.random.default_rng(0)
X = {rank: RNG.integers(-8, 9, size).astype(np.float16) for rank, size in SIZES.items()}


def linear(perm: list[int], bias: bool, form: str = "stored") -> tuple[Model, np.ndarray]:
    """y = Transpose(x) W (+ b), numbers that FP16 holds exactly, and what it gives."""
    x = X[len(perm)]
    k = x.shape[perm[-1]]
    w, b = RNG.integers(-4, 5, (k, 16)).astype(np.float16), np.arange(16, dtype=np.float16)
    nodes = [node("Transpose", ["x"], ["t"], perm=perm), node("MatMul", ["t", "w"], ["product"])]
    constants = {"w": w, "b": b}
    if form == "transposed":
        nodes.insert(0, node("Transpose", ["w_stored"], ["w"], perm=[1, 0]))
        constants = {"w_stored": np.ascontiguousarray(w.T), "b": b}
    if form == "cast":
        nodes.insert(0, node("Cast", ["w_stored"], ["w"], to=onnx.TensorProto.FLOAT16))
        constants = {"w_stored": w.astype(np.float32), "b": b}
    made = "product"
    if bias:
        nodes.append(node("Add", ["b", "product"], ["sum"]))
        made = "sum"
    nodes.append(node("Relu", [made], ["y"]))
    shape = [f"d{axis}" for axis in range(len(perm))]
    shape[perm[-1]] = k
    result = np.maximum(x.transpose(perm).astype(np.float32) @ w.astype(np.float32) + b * np.float16(bias), 0)
    return model(proto(nodes, [("x", HALF, shape)], [("y", HALF, None)], constants)), result


def run(made: Model, folder: Path) -> np.ndarray:
    """What a default session gives, in a process that may die."""
    written = folder / "m.onnx"
    io.save(made, written)
    with Trials() as trials:
        (trial,) = trials.try_out(written, {"x": X[len(made.inputs()[0].shape)]}, ["default"])
    assert trial.went, trial
    return trial.outputs["y"]


@pytest.mark.parametrize("form", ["stored", "transposed", "cast"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("perm", [[1, 0, 2], [1, 2, 0], [1, 2, 0, 3], [1, 2, 3, 0]], ids=str)
def test_a_default_session_loads_it_and_computes_the_same(
    perm: list[int], bias: bool, form: str, tmp_path: Path
) -> None:
    made, expected = linear(perm, bias, form)
    move_transposes(made)
    assert move_transposes(made) == []
    np.testing.assert_array_equal(run(made, tmp_path), expected.astype(np.float16))


def test_it_is_done_to_a_model_that_is_read(tmp_path: Path) -> None:
    given, expected = linear([1, 0, 2], bias=True)
    onnx.save(onnx.load_from_string(io.to_bytes(given)), tmp_path / "given.onnx")
    made = io.load(tmp_path / "given.onnx")
    assert [n.op for n in made.graph.nodes] == ["MatMul", "Add", "Transpose", "Relu"]
    np.testing.assert_array_equal(run(made, tmp_path), expected.astype(np.float16))


def test_a_transpose_that_others_read_stays_for_them(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("MatMul", ["t", "w"], ["q"]),
        node("MatMul", ["t", "w"], ["k"]),
        node("Add", ["q", "k"], ["sum"]),
        node("Add", ["sum", "t"], ["y"]),
    ]
    w = RNG.integers(-4, 5, (8, 8)).astype(np.float16)
    made = model(proto(nodes, [("x", HALF, ["a", "b", 8])], [("y", HALF, None)], {"w": w}))
    assert len(move_transposes(made)) == 2
    assert [n.op for n in made.graph.nodes].count("Transpose") == 3
    t = X[3].transpose(1, 0, 2)
    np.testing.assert_array_equal(run(made, tmp_path), 2 * (t @ w) + t)


@pytest.mark.parametrize("perm", [[0, 2, 1], [2, 0, 1], [2, 1, 0], [1, 0, 2, 3], [0, 2, 1, 3]], ids=str)
def test_other_orders_stay(perm: list[int]) -> None:
    made, _ = linear(perm, bias=True)
    assert [n.op for n in made.graph.nodes] == ["Transpose", "MatMul", "Add", "Relu"]
