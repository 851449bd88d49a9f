"""Engines: what they say of themselves, what is missing without a GPU, and on a GPU the comparison itself."""

from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.report.taps import choose, tapped
from gpusq_onnx.runtime.compare.engine import Engine, built, require_tensorrt
from gpusq_onnx.runtime.compare.outputs import compare
from gpusq_onnx.runtime.tensorrt.engine import build_engine
from gpusq_onnx.runtime.tensorrt.library import find_library
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import Bounds, make_profiles

MODEL = Path(__file__).parents[1] / "assets" / "digits_vit.onnx"


def missing() -> str:
    """Why no engine can run here; empty where one can."""
    try:
        require_tensorrt()
    except EnvironmentLacking as error:
        return str(error).replace("\n", ";")
    return ""


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class Deserialised:
    """What ICudaEngine tells of its inputs x [?, 8] and y [] and its output z, one profile a row (least, largest)."""

    num_io_tensors = 3

    def __init__(self, *profiles: tuple[int, int]) -> None:
        self.profiles, self.num_optimization_profiles = profiles, len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return "xyz"[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.OUTPUT if name == "z" else Mode.INPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"x": (-1, 8), "y": (), "z": (-1, 4)}[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        least, largest = self.profiles[profile]
        return [(least, 8), (largest, 8), (largest, 8)]


def engine_of(*profiles: tuple[int, int]) -> Any:
    engine = Engine.__new__(Engine)
    engine._engine = Deserialised(*profiles)
    engine._profile = engine._choose_profile()
    return engine


@pytest.mark.parametrize(
    ("profiles", "chosen", "largest", "leading"),
    [
        ([(1, 32)], 0, 32, None),
        ([(256, 256), (1, 8)], 1, 8, None),  # the one that takes a short last batch
        ([(256, 256)], 0, 256, 256),  # as good as a fixed batch
        ([(4, 16), (8, 32)], 0, 16, None),
    ],
)
def test_the_profile_decides_what_batches_an_engine_takes(
    profiles: list[tuple[int, int]], chosen: int, largest: int, leading: int | None
) -> None:
    engine = engine_of(*profiles)
    assert (engine._profile, engine.max_batch) == (chosen, largest)
    assert engine._shape("x") == (leading, 8)
    assert engine._shape("z") == (leading, 4)


def test_an_engine_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="engine file"):
        Engine.load(tmp_path / "none.plan")


@pytest.mark.skipif(not missing(), reason="TensorRT and a GPU are here")
def test_what_is_missing_is_said_in_one_sentence_with_what_to_install() -> None:
    with pytest.raises(EnvironmentLacking, match=r"TensorRT|GPU") as caught:
        built(MODEL, "model.onnx", 8)
    assert caught.value.exit_code == 5
    hint = caught.value.details["next"]
    assert hint is not None and "pip install 'gpusq-onnx[tensorrt]'" in hint


@pytest.mark.long
def test_the_builder_takes_a_graph_whose_inner_tensors_are_outputs(tmp_path: Path, harness: Path) -> None:
    library = find_library(harness=harness)
    model = io.load(MODEL)
    taps = choose(model, model, ["blocks"])
    options = BuildOptions(make_profiles(model.inputs(), [Bounds((1,), (8,), (8,))]), tf32=False)
    with tapped([model], taps) as (path,):
        plan = build_engine(path, "0", tmp_path / "m.plan", options, library).require(path).plan
    assert plan.stat().st_size > 1000


@pytest.mark.gpu
def test_a_plan_is_checked_from_the_command_line(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    from gpusq_onnx.cli import main

    plan, data = tmp_path / "m.plan", MODEL.with_name("digits_test.npz")
    assert main(["build", "--batch", "1,8,32", "-o", str(plan), str(MODEL), "-q"]) == 0
    gates = ["--min-cosine", "0.9999", "--min-agreement", "1", "--artefacts", str(tmp_path)]
    for candidate in ([str(plan)], [str(MODEL), "--on", "tensorrt", "--taps", "blocks"]):
        assert main(["check", str(MODEL), *candidate, "--data", str(data), *gates, "-q"]) == 0


@pytest.mark.gpu
def test_an_engine_is_compared_with_its_original(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    candidate = built(MODEL, "model.onnx", 4)
    x = np.random.default_rng(0).standard_normal((10, 3, 32, 32)).astype(np.float32)

    class Ten:
        def batches(self, batch: int) -> Any:
            for start in range(0, 10, batch):
                piece = x[start : start + batch]
                yield type("Piece", (), {"feed": {"pixel_values": piece}, "labels": None, "size": len(piece)})()

    found = compare(MODEL, candidate, Ten())
    assert found.samples == 10
    assert found.outputs[0].cosine_min is not None and found.outputs[0].cosine_min > 0.9999
    assert found.top1_agreement == 1.0
