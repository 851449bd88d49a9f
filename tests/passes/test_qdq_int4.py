"""qdq-int4: W4A8 and W4A4 as 4-bit values in INT8 tensors, or as INT4 codes for research; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import SelectorUnmatched, UnsupportedModelError, UsageError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.qdq.codes import codes_of, quantised
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.details import TensorPair, rows_with
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.quant.formats import INT4, INT4_IN_INT8, INT8
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.tensorrt.parser import parser_verdict

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit_legacy17.onnx"
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=32)


def apply(passes: str, folder: Path) -> tuple[Outcome, Path]:
    return manager.run(MODEL, folder / "out.onnx", parse(passes), RunOptions(DATA)), folder / "out.onnx"


def agreement(path: Path, **session: Any) -> float:
    """With the float model, on 200 test images."""
    with np.load(ASSETS / "digits_test.npz") as stored:
        x = stored["pixel_values"][:200].astype(np.float32)
    found, wanted = (Session(p, **session).run({"pixel_values": x})["logits"] for p in (path, MODEL))
    return float((found.argmax(1) == wanted.argmax(1)).mean())


@pytest.mark.long
@pytest.mark.parametrize(("data", "fmt", "least"), [("int8", INT8, 0.95), ("int4", INT4_IN_INT8, 0.85)])
def test_the_carrier_is_four_bits_in_int8(data: str, fmt: Any, least: float, tmp_path: Path) -> None:
    outcome, out = apply(f"qdq-int4{{activations={data}}}", tmp_path)
    model = io.load(out)
    assert not invariants.violations(model)
    assert invariants.RESEARCH not in model.metadata
    structure = analyse(model)
    sites = [site for site in structure.sites if site.quantised]
    assert [site.role for site in sites] == ["qkv", "proj", "fc1", "fc2"] * 3  # the Clips hide nothing
    assert len(structure.blocks) == 3
    for site in sites:
        assert (quantised(site).weight, quantised(site).input) == (INT4_IN_INT8, fmt)
        assert np.abs(codes_of(site).astype(int)).max() <= 8
    kernels = {str(weight.kernel) for weight in inspect_model(model).weights if weight.format}
    assert kernels == {"dense INT8"}
    assert outcome.proof is not None and outcome.proof.outputs[0].relative is not None
    assert agreement(out, exact_qdq=True) > least


@pytest.mark.long
@pytest.mark.parametrize(("data", "count"), [("int8", 0), ("int4", 3)])
def test_what_a_gelu_makes_is_centred_before_four_bits(data: str, count: int, tmp_path: Path) -> None:
    outcome, out = apply(f"qdq-int4{{activations={data}}}", tmp_path)
    model = io.load(out)
    centring = [node for node in model.graph.nodes if node.name.endswith("_Centre")]
    assert len(centring) == count
    assert {site.activation.inputs[0].name for site in analyse(model).sites if site.role == "fc2"} >= {
        node.name for node in centring
    }
    asked = rows_with(outcome.steps[-1].rows, TensorPair)
    assert {pair.centred for _, pair in asked} == {data == "int4"}
    folded = {pair.equalise == "always" for row, pair in asked if row.role in ("input of qkv", "input of fc1")}
    assert folded == {data == "int4"}  # weights of fewer bits than what they read: outliers alone


def test_who_reads_the_shape_alone_does_not_keep_a_layer_norm_from_being_equalised() -> None:
    rows = manager.plan(MODEL, parse("qdq-int8"), RunOptions(DATA)).steps[-1].rows
    assert {pair.equalise for row, pair in rows_with(rows, TensorPair) if row.role == "input of qkv"} == {"always"}


@pytest.mark.long
def test_with_2_4_and_narrow_outputs_it_is_for_sparse_int8_kernels(tmp_path: Path) -> None:
    _, out = apply("prune24{method=magnitude},qdq-int4{profile=sparse-int8}", tmp_path)
    kernels = [str(weight.kernel) for weight in inspect_model(io.load(out)).weights if weight.format]
    assert kernels == ["sparse INT8"] * 12


@pytest.mark.long
def test_the_carrier_is_parsed_and_built(harness: Path, tmp_path: Path) -> None:
    _, out = apply("qdq-int4{activations=int4}", tmp_path)
    verdict = parser_verdict(out, harness=harness, build=True)
    assert (verdict.ok, verdict.errors, verdict.built) == (True, [], True)


@pytest.mark.long
@pytest.mark.parametrize("data", ["int8", "int4"])
def test_training_stays_on_the_grid(data: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    _, out = apply(f"qdq-int4{{activations={data}}},qat{{epochs=1,steps=2,batch=8}}", tmp_path)
    sites = [site for site in analyse(io.load(out)).sites if site.quantised]
    assert len(sites) == 12
    assert all(quantised(site).weight is INT4_IN_INT8 for site in sites)
    assert {quantised(site).input for site in sites} == {INT8 if data == "int8" else INT4_IN_INT8}


@pytest.mark.long
@pytest.mark.parametrize("more", ["", ",weights=codes,block=16"])
def test_native_codes_are_marked_as_research_and_run_on_a_cpu(more: str, tmp_path: Path) -> None:
    outcome, out = apply(f"qdq-int4{{activations=int4,deployment=native{more}}}", tmp_path)
    assert any("for research" in warning for warning in outcome.warnings)
    model = io.load(out)
    assert "no GPU has run this form" in model.metadata[invariants.RESEARCH]
    assert not invariants.violations(model)  # those that hold for every graph
    model.set_metadata({invariants.RESEARCH: None})
    assert any("TensorRT has INT4 weights only" in text for text in invariants.violations(model))
    site = next(site for site in analyse(model).sites if site.quantised)
    assert (quantised(site).weight, quantised(site).input) == (INT4, INT4)
    (row, *_) = [weight for weight in inspect_model(io.load(out)).weights if weight.format]
    assert (str(row.kernel), row.obstacles[0].kind, row.scale_block) == ("none known", "research", 16 if more else 0)
    assert agreement(out) > 0.85


def test_what_eight_names_keeps_eight_bits(tmp_path: Path) -> None:
    outcome = manager.plan(MODEL, parse("qdq-int4{activations=int4,eight=[fc2;blocks.0.*]}"), RunOptions(DATA))
    weights = [row for row in outcome.steps[-1].rows if row.decision == "quantise weight"]
    assert {row.detail.format for row in weights if row.role == "fc2" or row.module.startswith("blocks.0.")} == {"int8"}
    others = [row for row in weights if row.role != "fc2" and not row.module.startswith("blocks.0.")]
    assert {row.detail.format for row in others} == {"int4-in-int8"}
    inputs = {
        row.role: pair.format for row, pair in rows_with(outcome.steps[-1].rows, TensorPair) if pair.side == "input"
    }
    assert inputs["input of fc2"] == "int8"
    with pytest.raises(SelectorUnmatched) as caught:
        manager.plan(MODEL, parse("qdq-int4{eight=nonesuch}"), RunOptions(DATA))
    assert caught.value.details["where"] == "qdq-int4.eight"


def test_blocks_beside_quantised_data_are_refused_with_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be deployed") as caught:
        apply("qdq-int4{block=64}", tmp_path)
    assert caught.value.exit_code == 3
    assert "its build fails" in str(caught.value.details["found"])
    assert "int4-weights" in str(caught.value.details["next"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", ["block=48", "activations=int2", "deployment=uint4"])
def test_options_that_there_are_not(options: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        apply(f"qdq-int4{{{options}}}", tmp_path)
