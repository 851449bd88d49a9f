"""Models exported in 16-bit floats: every pass runs, types stay as they were, training is in float32."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from half_models import retyped
from noise_images import noise_images
from onnx import TensorProto

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager, table
from gpusq_onnx.pipeline.execute import RunOptions
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.sparsity.patterns import parse_pattern
from gpusq_onnx.workflows.check import check

ASSETS = Path(__file__).parents[1] / "assets"
LEARN = "steps=2 batch=4"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataOptions:
    return DataOptions(path=noise_images(tmp_path_factory.mktemp("images"), 40))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return retyped(ASSETS / "digits_vit.onnx", tmp_path_factory.mktemp("half") / "half.onnx", TensorProto.FLOAT16)


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return retyped(ASSETS / "digits_vit.onnx", tmp_path_factory.mktemp("half") / "bf16.onnx", TensorProto.BFLOAT16)


def _types(path: Path) -> set[str]:
    """The float types of initializers."""
    kinds = {TensorProto.DataType.Name(t.data_type) for t in onnx.load_model(str(path)).graph.initializer}
    return {kind for kind in kinds if "FLOAT" in kind}


PIPELINES = [
    *(name for name in table.PRESETS if "distill" not in table.PRESETS[name].text and name != "tensorrt-int8"),
    "prune24{method=magnitude}",
    f"prune24,distill{{{LEARN}}},qdq-int8{{profile=sparse-int8}},qat{{{LEARN}}}",
]


@pytest.mark.long
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_float16_goes_through(pipeline: str, half: Path, data: DataOptions, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    manager.run(half, output, parse(pipeline), RunOptions(data))
    assert _types(output) == {"FLOAT16"}
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float16)
    sessions = [Session(path, optimize=False) for path in (half, output)]
    (before,), (after,) = (session.run({"pixel_values": image}).values() for session in sessions)
    assert after.dtype == before.dtype == np.float16
    assert np.isfinite(after).all()
    structure = analyse(io.load(output))
    for site in structure.sites if "prune24" in str(table.expand(parse(pipeline))) else ():
        if site.block is not None:
            assert parse_pattern("2:4").holds(site.read())


@pytest.mark.long
def test_training_moves_weights_of_half_precision(half: Path, data: DataOptions, tmp_path: Path) -> None:
    pruned, trained = tmp_path / "pruned.onnx", tmp_path / "trained.onnx"
    manager.run(half, pruned, parse("prune24{method=magnitude}"), RunOptions(data))
    manager.run(half, trained, parse(f"prune24{{method=magnitude}},distill{{{LEARN} lr=0.01}}"), RunOptions(data))
    before, after = ({s.name: s.read() for s in analyse(io.load(path)).sites} for path in (pruned, trained))
    assert any((before[name] != after[name]).any() for name in before)


def test_float16_needs_no_fp16(half: Path, data: DataOptions, tmp_path: Path) -> None:
    with pytest.raises(NothingMatched, match="computes in float16 already"):
        manager.run(half, tmp_path / "out.onnx", parse("fp16"), RunOptions(data))


@pytest.mark.long
def test_bfloat16_is_pruned_and_trained_without_the_runtime(brain: Path, data: DataOptions, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    manager.run(brain, output, parse(f"prune24{{method=magnitude}},distill{{{LEARN}}}"), RunOptions(data))
    assert _types(output) == {"BFLOAT16"}


@pytest.mark.parametrize("pipeline", ["prune24{method=sparsegpt}", "qdq-int8", "qdq-int8,fp16"])
def test_bfloat16_that_is_computed_with_becomes_float32(
    pipeline: str, brain: Path, data: DataOptions, tmp_path: Path
) -> None:
    output = tmp_path / "out.onnx"
    outcome = manager.run(brain, output, parse(pipeline), RunOptions(data))
    assert "BFLOAT16" not in _types(output)
    assert any("became float32, inputs and outputs too" in warning for warning in outcome.warnings)
    planned = manager.plan(brain, parse(pipeline), RunOptions(data))
    assert [step.name for step in planned.steps] == [step.name for step in outcome.steps]
    found = check(brain, output, data=data.path)
    assert found.comparison.outputs[0].cosine_mean > 0.9
    assert any("bfloat16" in note for note in found.notes)
