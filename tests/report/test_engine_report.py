"""Prediction against truth, on a model with every fate and on recorded texts of TensorRT 8.6, 10.x and 11.x."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from engine_models import five_linears

from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph.io import load
from gpusq_onnx.report.engine import EngineReport, WeightTruth, make_report
from gpusq_onnx.report.engine_digest import digest
from gpusq_onnx.report.inspection import Inspection, inspect_model
from gpusq_onnx.report.kernels import UNKNOWN, KernelClass
from gpusq_onnx.report.sparse_gate import parse_gate
from gpusq_onnx.runtime.tensorrt.engine import Built
from gpusq_onnx.runtime.tensorrt.library import Library
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import make_profiles, parse_batch

RECORDED = Path(__file__).parents[1] / "runtime" / "recorded"
H100 = Library("TensorRT 11.4", "11.4.0", {"name": "NVIDIA H100", "capability": "9.0", "driver": "13.0"}, None, False)


def recorded(
    tmp_path: Path,
    log: str = "",
    inspector: str = "",
    *,
    batch: str = "1,32,64",
    inspection: Inspection | None = None,
) -> EngineReport:
    path = five_linears(tmp_path / "m.onnx")
    model = load(path)
    lines = tuple((RECORDED / log).read_text().splitlines()) if log else ()
    text = (RECORDED / inspector).read_text() if inspector else ""
    built = Built(tmp_path / "m.plan", (), "ab" * 32, 1000, lines, text, "", False, 12.0)
    options = BuildOptions(make_profiles(model.inputs(), [parse_batch(batch)]))
    commands = {"trtexec": "trtexec …", "polygraphy": "polygraphy …"}
    found = inspection or inspect_model(model)
    return make_report(path, "cd", found, built, H100, options, commands, open_batch=True)


def weights(report: EngineReport) -> dict[str, WeightTruth]:
    return {weight.name.removesuffix("_w"): weight for weight in report.weights}


def test_the_prediction_needs_no_engine(tmp_path: Path) -> None:
    found = {w.name.removesuffix("_w"): w for w in inspect_model(load(five_linears(tmp_path / "m.onnx"))).weights}
    assert {name: (str(w.kernel), w.eligible) for name, w in found.items()} == {
        "fc1": ("sparse INT8", True),
        "proj": ("dense INT8", True),
        "dense": ("dense INT8", False),
        "float": ("dense FP32", False),
        "small": ("sparse INT8", True),
    }
    assert [o.kind for o in found["proj"].obstacles] == ["output"]
    assert found["proj"].obstacles[0].remedy == "--passes 'qdq-int8{profile=sparse-int8}'"
    assert [o.kind for o in found["dense"].obstacles] == ["pattern"]
    assert [o.kind for o in found["float"].obstacles] == ["precision"]
    assert [o.kind for o in found["small"].obstacles] == ["size"]
    assert found["fc1"].obstacles == ()


@pytest.mark.parametrize(
    ("log", "inspector", "chosen"),
    [
        ("trt86.log", "", {"fc1"}),
        ("trt86.log", "trt86.json", {"fc1"}),
        ("trt10.log", "", {"fc1"}),
        ("trt10.log", "trt10.json", {"fc1"}),
        ("trt11.log", "", {"fc1", "small"}),
        ("trt11.log", "trt11.json", {"fc1", "small"}),
    ],
)
def test_eligible_and_chosen_weights_are_found(tmp_path: Path, log: str, inspector: str, chosen: set[str]) -> None:
    report = recorded(tmp_path, log, inspector)
    found = weights(report)
    assert report.known
    assert {name for name, weight in found.items() if weight.eligible} == {"fc1", "proj", "small"}
    assert {name for name, weight in found.items() if weight.chosen} == chosen
    assert (report.eligible, report.chosen, report.unmatched) == (3, len(chosen), ())


def test_the_inspector_alone_shows_what_was_chosen(tmp_path: Path) -> None:
    report = recorded(tmp_path, "", "trt11.json")
    assert (report.known, report.chosen) == (True, 1)
    assert weights(report)["fc1"].chosen and weights(report)["fc1"].eligible
    assert weights(report)["fc1"].tactic.startswith("sm90_xmma_sparse_gemm")


def test_prediction_and_truth_are_compared(tmp_path: Path) -> None:
    found = weights(recorded(tmp_path, "trt10.log", "trt10.json"))
    assert {name: weight.verdict for name, weight in found.items()} == {
        "fc1": "as predicted",
        "proj": "as predicted",
        "dense": "no layer of the engine names it",
        "float": "no layer of the engine names it",
        "small": "dense, a sparse kernel was possible",
    }
    assert (found["proj"].precision, found["proj"].output) == ("INT8", "FP16")
    assert weights(recorded(tmp_path, "trt11.log", "trt11.json"))["float"].verdict == "BF16, predicted FP32"


@pytest.mark.parametrize(
    ("codes", "predicted", "verdict"),
    [
        ("Int4", KernelClass("dense", ("FP32", "INT4")), "as predicted"),
        ("Float", KernelClass("dense", ("FP32", "INT4")), "as predicted"),
        ("Half", KernelClass("dense", ("FP32", "INT4")), "FP16, predicted FP32 x INT4"),
        ("Int8", UNKNOWN, "built, predicted none known"),
    ],
)
def test_a_kernel_of_two_types_may_be_reported_by_either(
    tmp_path: Path, codes: str, predicted: KernelClass, verdict: str
) -> None:
    layer = {"Name": "/float/MatMul_myl0_3", "LayerType": "gemm", "Inputs": [{"DataType": codes}]}
    (tmp_path / "json").write_text(json.dumps({"Layers": [layer]}))
    path = five_linears(tmp_path / "m.onnx")
    found = inspect_model(load(path))
    found = replace(found, weights=tuple(replace(weight, kernel=predicted) for weight in found.weights))
    report = recorded(tmp_path, "", str(tmp_path / "json"), inspection=found)
    assert (weights(report)["float"].verdict, weights(report)["float"].predicted) == (verdict, str(predicted))


def test_a_sparse_kernel_that_was_not_predicted_is_told(tmp_path: Path) -> None:
    text = (
        (RECORDED / "trt10.log").read_text().replace("tactics: /fc1/MatMul_myl0_3\n", "tactics: /proj/MatMul_myl0_5\n")
    )
    (tmp_path / "log").write_text(text)
    report = recorded(tmp_path, str(tmp_path / "log"))
    assert weights(report)["proj"].verdict == "sparse, predicted dense"
    assert weights(report)["fc1"].verdict == "dense, a sparse kernel was possible"


def test_an_eligible_layer_that_is_dense_has_a_reason_and_a_remedy(tmp_path: Path) -> None:
    found = weights(recorded(tmp_path, "trt10.log", "trt10.json"))
    assert found["proj"].reason == "no Q/DQ on its output, so the dense INT8 kernel wins"
    assert "sparse-int8" in found["proj"].remedy
    assert found["small"].reason.startswith("below 256 x 256")
    assert {name for name, weight in found.items() if weight.reason} == {"proj", "small"}


NONE_CHOSEN = """\
[X] (Sparsity) Found 1 layer(s) eligible to use sparse tactics: /fc1/MatMul_myl0_3
[X] (Sparsity) Chose 0 layer(s) using sparse tactics:
"""


@pytest.mark.parametrize(
    ("kind", "batch", "reason", "remedy"),
    [
        ("gemm", "1", "tuned for batch 1", "--batch"),
        ("gemm", "32", "timed slower on this GPU", "--optimization-level 5"),
        ("kgen", "1", "Myelin region", "sparse-int8"),
    ],
)
def test_where_the_graph_gives_no_reason_the_engine_does(
    tmp_path: Path, kind: str, batch: str, reason: str, remedy: str
) -> None:
    layer = {"Name": "/fc1/MatMul_myl0_3", "LayerType": kind, "TacticName": "some_dense_kernel"}
    (tmp_path / "log").write_text(NONE_CHOSEN)
    (tmp_path / "json").write_text(json.dumps({"Layers": [layer]}))
    found = weights(recorded(tmp_path, str(tmp_path / "log"), str(tmp_path / "json"), batch=batch))["fc1"]
    assert reason in found.reason
    assert remedy in found.remedy


def test_of_the_layers_made_of_a_node_the_one_that_multiplies_is_taken(tmp_path: Path) -> None:
    layers = [
        {"Name": name, "LayerType": "kgen", "Metadata": "[ONNX Layer: /float/MatMul]", "Inputs": [{"DataType": kind}]}
        for name, kind in (("__myl_CastReplConc_myl0_1", "Int8"), ("__myl_FcMulAdd_myl0_2", "Float"))
    ]
    (tmp_path / "json").write_text(json.dumps({"Layers": layers}))
    found = weights(recorded(tmp_path, "", str(tmp_path / "json")))["float"]
    assert (found.layer, found.precision) == ("__myl_FcMulAdd_myl0_2", "FP32")


def test_a_chosen_layer_that_no_weight_claims_is_listed(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("[X] (Sparsity) Chose 1 layer(s) using sparse tactics: (Unnamed Layer* 3) [Matmul]\n")
    assert recorded(tmp_path, str(tmp_path / "log")).unmatched == ("(Unnamed Layer* 3) [Matmul]",)


def test_without_a_word_on_sparsity_nothing_is_claimed(tmp_path: Path) -> None:
    report = recorded(tmp_path)
    assert not report.known
    assert {weight.chosen for weight in report.weights} == {None}
    document = report.to_dict()["sparsity"]
    assert (document["eligible"], document["chosen"]) == (None, None)
    assert "not reported" in digest(report)


@pytest.mark.parametrize(
    ("gate", "log", "met"),
    [
        ("0", "trt10.log", True),
        ("1", "trt10.log", True),
        ("2", "trt10.log", False),
        ("33%", "trt10.log", True),
        ("34%", "trt10.log", False),
        ("48%", "trt10_counts.log", True),
        ("49%", "trt10_counts.log", False),
        ("1", "trt86_none.log", False),
        ("1%", "trt86_none.log", False),
        ("0%", "trt86_none.log", True),
        ("0", "", False),  # nothing is known
    ],
)
def test_the_gate(tmp_path: Path, gate: str, log: str, met: bool) -> None:
    judged = parse_gate(gate).judge(recorded(tmp_path, log))
    assert (not judged.failures) == met
    assert judged.to_dict()["passed"] == met


def test_a_share_of_nothing_eligible_is_not_met(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("[X] (Sparsity) Found 0 layer(s) eligible to use sparse tactics:\n")
    (failure,) = parse_gate("0%").judge(recorded(tmp_path, str(tmp_path / "log"))).failures
    assert "no layer is eligible" in failure


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "%", "all", "5 %%"])
def test_a_gate_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--min-sparse-chosen"):
        parse_gate(text)


def test_the_report_is_json_and_reads_well(tmp_path: Path) -> None:
    report = recorded(tmp_path, "trt10.log", "trt10.json")
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["engine"]["deployable"] is True
    assert document["sparsity"]["chosen_layers"] == ["/fc1/MatMul_myl0_3"]
    assert document["warnings"] == ["Make sure input x has Int64 binding."]
    assert [layer["precision"] for layer in document["layers"]] == ["FP16", "INT8", "INT8", "INT8"]
    text = digest(report)
    assert "1 chosen of 3 eligible layers" in text
    assert "by TensorRT 11.4 for NVIDIA H100" in text
    assert "## 2 eligible, yet dense" in text
    assert "NOT FOR DEPLOYMENT" not in text


def test_an_engine_of_the_harness_is_marked(tmp_path: Path) -> None:
    report = recorded(tmp_path)
    harness = replace(report, library=Library("TensorRT-RTX 1.7 (CPU)", "11.4.0", None, tmp_path, False))
    assert harness.to_dict()["engine"]["deployable"] is False
    assert "NOT FOR DEPLOYMENT" in digest(harness)
