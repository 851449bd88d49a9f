"""Models exported in 16-bit floats: every pass runs, types stay as they were, training is in float32."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from half_models import retyped
from noise_images import noise_images
from onnx import TensorProto

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager, table
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.sparsity.patterns import parse_pattern
from gpusq_onnx.workflows.check import check
from tests.graph.small_graphs import FLOAT, HALF, node, normal, proto

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


def test_one_linear_in_float16_does_not_keep_the_others_in_float32(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["x"], ["x16"], to=HALF),
        node("MatMul", ["x16", "w"], ["a16"]),
        node("Cast", ["a16"], ["a"], to=FLOAT),
        node("MatMul", ["a", "v"], ["y"]),
    ]
    stored = {"w": normal(32, 32, dtype=np.float16), "v": normal(32, 32)}
    values = [[(name, FLOAT, [2, 32])] for name in "xy"]
    onnx.save(proto(nodes, *values, stored), tmp_path / "mixed.onnx")
    manager.run(tmp_path / "mixed.onnx", tmp_path / "out.onnx", parse("fp16"), RunOptions(DataOptions()))
    assert _types(tmp_path / "out.onnx") == {"FLOAT16"}
    assert [n.op for n in io.load(tmp_path / "out.onnx").graph.nodes] == ["Cast", "MatMul", "MatMul", "Cast"]
    with pytest.raises(NothingMatched, match="computes in float16 already"):
        manager.run(tmp_path / "out.onnx", tmp_path / "again.onnx", parse("fp16"), RunOptions(DataOptions()))


@pytest.mark.parametrize(
    "pipeline", ["fp16", pytest.param("prune24{method=magnitude},qdq-int8,fp16", marks=pytest.mark.long)]
)
def test_float16_that_onnxruntime_has_optimised_for_a_cpu(pipeline: str, half: Path, tmp_path: Path) -> None:
    optimised, output = tmp_path / "optimised.onnx", tmp_path / "out.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimised)
    onnxruntime.InferenceSession(str(half), options)
    assert any(n.name.startswith("InsertedPrecisionFreeCast_") for n in onnx.load(optimised).graph.node)
    manager.run(optimised, output, parse(pipeline), RunOptions(DataOptions()))
    structure = analyse(io.load(output))
    assert {structure.types[reader.outputs[0].name].name for s in structure.sites for reader in s.readers} == {
        "float16"
    }
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float16)
    (before,), (after,) = (Session(path).run({"pixel_values": image}).values() for path in (half, output))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > (0.999 if pipeline == "fp16" else 0.9)


@pytest.mark.long
def test_bfloat16_is_pruned_and_trained_without_the_runtime(brain: Path, data: DataOptions, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    manager.run(brain, output, parse(f"prune24{{method=magnitude}},distill{{{LEARN}}}"), RunOptions(data))
    assert _types(output) == {"BFLOAT16"}


@pytest.mark.long
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
