"""Targets: what a target does not run is refused or written in the honest form, with a sentence."""

from pathlib import Path

import pytest

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.pipeline import manager, table, targets
from gpusq_onnx.pipeline.base import Written
from gpusq_onnx.pipeline.grammar import Pipeline, parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.pipeline.targets import TARGETS, fit

MODEL = Path(__file__).parents[1] / "assets" / "digits_vit_legacy17.onnx"
GPUS = [name for name in TARGETS if name != "cpu"]


def fitted(passes: str, target: str) -> tuple[str, list[str]]:
    pipeline, notes = fit(table.expand(parse(passes)), target)
    return str(pipeline), notes


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_runs_int8_and_4_bit_values_in_int8(target: str) -> None:
    for passes in ("qdq-int8", "qdq-int4", "qdq-int4{activations=int4}"):
        assert fitted(passes, target) == (passes, [])


@pytest.mark.parametrize("target", TARGETS)
def test_weights_in_four_bits_are_written_for_the_runtime(target: str) -> None:
    for passes in ("int4-weights{block=32}", "int4-weights{block=32,for=onnxruntime}"):
        found, notes = fitted(passes, target)
        on_cpu = target == "cpu"
        wanted = "onnxruntime" if on_cpu else "tensorrt"
        (step,) = table.resolve(parse(found))
        assert step.options.runtime == wanted
        assert step.options.block == 32
        assert bool(notes) == (("onnxruntime" in passes) != on_cpu)


@pytest.mark.parametrize("target", GPUS)
def test_native_int4_becomes_the_carrier_with_a_sentence(target: str) -> None:
    found, notes = fitted("qdq-int4{activations=int4,block=16,deployment=native}", target)
    assert found == "qdq-int4{activations=int4,deployment=int8-carrier}"
    assert len(notes) == 1 and "research" in notes[0] and notes[0].startswith(f"target {target}: ")
    assert fitted("qdq-int4{deployment=native}", "cpu") == ("qdq-int4{deployment=native}", [])


@pytest.mark.parametrize(
    ("form", "refusing", "condition"),
    [
        ("fp8 x fp8", {"ampere", "orin"}, {"rtx"}),
        ("fp4 in blocks x fp4", {"ampere", "ada", "hopper", "orin", "cpu"}, {"rtx"}),
    ],
)
def test_forms_that_a_target_lacks_are_refused_with_a_remedy(
    form: str, refusing: set[str], condition: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_written", lambda step, known: Written((form,)))
    for name in TARGETS:
        if name in refusing:
            with pytest.raises(UnsupportedModelError, match=f"does not run {form}") as caught:
                fit(Pipeline(parse("qdq").steps), name)
            assert caught.value.exit_code == 3
            assert "qdq-int" in str(caught.value.details["next"])
        else:
            assert bool(fit(parse("qdq"), name)[1]) == (name in condition)


def test_patterns_say_where_they_run_dense() -> None:
    assert fitted("prune24,qdq-int8{profile=sparse-int8}", "ada")[1] == []
    assert "profile=sparse-int8" in fitted("prune24,qdq-int8", "ada")[1][0]
    assert fitted("prune-nm{pattern=1:4}", "ada")[1] == []  # 1:4 is 2:4
    assert "no sparse kernels for 4:8pair" in fitted("prune48pair", "blackwell")[1][0]
    assert "no sparse kernels for 2:4" in fitted("gpusq-oneshot", "cpu")[1][0]
    assert "FP32" in fitted("fp16", "cpu")[1][0]


def test_a_target_is_in_the_report_and_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    outcome = manager.run(MODEL, out, parse("int4-weights"), RunOptions(DataOptions(), target="cpu"))
    assert outcome.pipeline == "int4-weights{runtime=onnxruntime}"
    assert outcome.warnings[0].startswith("target cpu: 4-bit weights are written as MatMulNBits")
    assert io.load(out).metadata["pkg.gpusq_onnx.target"] == "cpu"
    planned = manager.plan(MODEL, parse("int4-weights"), RunOptions(DataOptions(), target="cpu"))
    assert (planned.pipeline, planned.warnings) == (outcome.pipeline, outcome.warnings)


def test_a_newer_opset_than_is_known_to_be_read_is_said() -> None:
    assert targets.too_new("orin", 23) and not targets.too_new("orin", 21) and not targets.too_new("ada", 23)


def test_an_unknown_target_is_usage() -> None:
    with pytest.raises(UsageError, match="there is no target 'hoper'") as caught:
        fit(parse("qdq-int8"), "hoper")
    assert "hopper" in str(caught.value.details["next"])
