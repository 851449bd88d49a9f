"""What looking at activations costs in memory: a bound that does not grow with the number of tensors looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.calibration import activations as calibrate
from gpusq_onnx.calibration import image_bytes
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.progress import NullProgress

LAYERS, ROWS, WIDTH = 48, 2048, 512  # an activation is 4 MB, all of them are 400 MB
ROOM = 160  # MB: a batch's inputs, a few activations, the runtime's arena


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LAYERS times Linear and ReLU: little weight, many activations. And a sample beside it."""
    rng = np.random.default_rng(0)
    nodes, x = [], "x"
    for layer in range(LAYERS):
        nodes.append(helper.make_node("MatMul", [x, f"w{layer % 2}"], [f"m{layer}"], name=f"m{layer}"))
        x = f"r{layer}" if layer < LAYERS - 1 else "y"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [x], name=x))
    weights = {f"w{i}": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5 for i in range(2)}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", ROWS, WIDTH]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], stored)
    path = tmp_path_factory.mktemp("memory") / "deep.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    np.save(path.with_name("x.npy"), rng.standard_normal((2, ROWS, WIDTH)).astype(np.float32))
    return path


def _peak(model: Path, *arguments: str) -> float:
    """Peak resident MB of `gpusq-onnx apply` on the model."""
    command = [
        sys.executable,
        "-m",
        "gpusq_onnx",
        "apply",
        *arguments,
        "-o",
        str(model.with_name("o.onnx")),
        str(model),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    return usage.ru_maxrss / 1024


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a child is read with os.wait4")
def test_the_range_guard_takes_the_memory_of_a_few_tensors(deep: Path) -> None:
    without = _peak(deep, "--passes", "fp16{images=0}")
    found = _peak(deep, "--passes", "fp16", "--data", str(deep.with_name("x.npy")))
    assert found < without + ROOM, f"{found:.0f} MB, {without:.0f} MB without data"


def _calibration(model: Path, budget: int, monkeypatch: pytest.MonkeyPatch, together: list[tuple[str, str]]) -> Any:
    for module in (image_bytes, calibrate):
        monkeypatch.setattr(module, "BUDGET", budget)
    loaded = io.load(model)
    structure = analyse(loaded)
    spec = InputSpec("x", np.dtype(np.float32), ("n", ROWS, WIDTH))
    source = open_source(DataOptions(path=model.with_name("x.npy")), [spec])
    names = [f"m{layer}" for layer in range(6)]
    return calibrate.Calibration(loaded, names, structure.shapes, source, NullProgress(), together)


@pytest.mark.parametrize(
    ("budget", "batch", "groups"),
    [
        (50 << 20, 2, 1),
        (9 << 20, 1, 3),
        *(pytest.param(*row, marks=pytest.mark.long) for row in ((1 << 30, 4, 1), (30 << 20, 1, 1), (1 << 20, 1, 5))),
    ],
)
def test_what_a_run_hands_over_fits_the_budget(
    deep: Path, monkeypatch: pytest.MonkeyPatch, budget: int, batch: int, groups: int
) -> None:
    """Six tensors of 4 MB each; m0 and m5 are wanted together."""
    seen: dict[str, list[np.ndarray]] = {}  # type: ignore[type-arg]

    def visit(found: Mapping[str, np.ndarray], images: int) -> None:  # type: ignore[type-arg]
        assert sum(value.nbytes for value in found.values()) <= max(budget, 8 << 20)  # of the pair, at least
        assert ("m0" in found) == ("m5" in found)
        for name, value in found.items():
            seen.setdefault(name, []).append(value)

    with _calibration(deep, budget, monkeypatch, [("m0", "m5")]) as calibration:
        assert (calibration.batch, len(calibration.groups)) == (batch, groups)
        assert calibration.run(visit, "looking") == 2
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(deep).graph.initializer]
    x = np.load(deep.with_name("x.npy"))
    for layer in range(6):
        x = x @ weights[layer % 2]
        np.testing.assert_allclose(np.concatenate(seen[f"m{layer}"]), x, rtol=1e-3, atol=1e-3)
        x = np.maximum(x, 0)


def test_shapes_that_inference_does_not_know_are_measured(tmp_path: Path) -> None:
    """A Reshape to what a Shape computes: inference gives up two dimensions, and a run knows them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="s"),
        helper.make_node("Sub", ["s", "less"], ["t"], name="t"),
        helper.make_node("Concat", ["t", "rest"], ["to"], name="to", axis=0),
        helper.make_node("Reshape", ["x", "to"], ["r"], name="r"),
        helper.make_node("Relu", ["r"], ["y"], name="relu"),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "h", "w"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, None, None]),
    ]
    stored = {"less": np.array([0, 1, 0]), "rest": np.array([-1])}
    initializers = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    np.save(tmp_path / "x.npy", np.zeros((3, 2, 4), np.float32))
    model = io.load(path)
    shapes = analyse(model).shapes
    spec = InputSpec("x", np.dtype(np.float32), ("n", "h", "w"))
    source = open_source(DataOptions(path=tmp_path / "x.npy"), [spec])
    assert image_bytes.image_bytes(model, ["r", "y"], shapes, source) == {"r": 32, "y": 32}
