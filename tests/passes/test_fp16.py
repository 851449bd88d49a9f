"""fp16: the embedded model in FP16, alone and after 2:4 and QDQ; its range guard, its border, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import NothingMatched, UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.qdq.codes import codes_of
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.compare.outputs import compare
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.tensorrt.parser import parser_verdict
from gpusq_onnx.sparsity.patterns import parse_pattern

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ("digits_vit", "digits_vit_legacy17")
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=16)
NO_DATA = DataOptions()


class LayerNormalization(OpRun):
    """With FP32 inside, as the ONNX specification's stash_type says; onnx's own reference leaves that out."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any, axis: int, epsilon: float, stash_type: int) -> tuple[Any]:
        wide = x.astype(np.float32)
        centred = wide - wide.mean(axis, keepdims=True)
        unit = centred / np.sqrt(np.square(centred).mean(axis, keepdims=True) + np.float32(epsilon))
        return ((unit.astype(x.dtype) * scale + bias).astype(x.dtype),)


def images(count: int = 355) -> np.ndarray:
    with np.load(ASSETS / "digits_test.npz") as stored:
        return stored["pixel_values"][:count].astype(np.float32)


def numpy_logits(path: Path, x: np.ndarray) -> np.ndarray:
    """By numpy, where every FP16 tensor is FP16; onnxruntime's CPU kernels compute in FP32."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(str(path), new_ops=[LayerNormalization]).run(None, {"pixel_values": x})[0]


def logits(path: Path, x: np.ndarray) -> np.ndarray:
    return Session(path, exact_qdq=True).run({"pixel_values": x})["logits"]


def apply(passes: str, path: Path, output: Path, data: DataOptions = DATA) -> Outcome:
    return manager.run(path, output, parse(passes), RunOptions(data))


def floats(path: Path) -> set[str]:
    """Types of the initializers that an operator computes with."""
    return {c.dtype.name for c in io.load(path).constants() if c.dtype.kind == "f"}


@pytest.mark.parametrize("name", MODELS)
def test_fp16_follows_float32(name: str, tmp_path: Path) -> None:
    path, output = ASSETS / f"{name}.onnx", tmp_path / "out.onnx"
    apply("fp16", path, output)
    want = logits(path, images())
    np.testing.assert_allclose(logits(output, images()), want, atol=0.02)
    np.testing.assert_allclose(numpy_logits(output, images(8)), want[:8], atol=0.02)
    assert output.stat().st_size < 0.6 * path.stat().st_size


@pytest.mark.long
@pytest.mark.parametrize(("profile", "weights"), [("accurate", "float"), ("sparse-int8", "int8")])
def test_behind_24_and_qdq(profile: str, weights: str, harness: Path, tmp_path: Path) -> None:
    path, wide, output = ASSETS / "digits_vit.onnx", tmp_path / "wide.onnx", tmp_path / "out.onnx"
    apply(f"prune24{{method=sparsegpt}},qdq-int8{{profile={profile} weights={weights}}}", path, wide)
    outcome = apply("fp16", wide, output)
    assert "weights and scales of FP16 operators are FP16" in outcome.steps[-1].facts
    model = io.load(output)
    assert floats(output) == {"float16"}
    sites = [site for site in analyse(model).sites if site.quantised]
    assert len(sites) == 12
    assert all(parse_pattern("2:4").holds(codes_of(site)) and parse_pattern("2:4").holds(site.read()) for site in sites)
    want, found = logits(wide, images()), logits(output, images())
    assert np.mean(want.argmax(1) == found.argmax(1)) > 0.99
    np.testing.assert_allclose(numpy_logits(output, images(2)), want[:2], atol=0.3)
    verdict = parser_verdict(output, harness=harness, build=True)
    assert (verdict.ok, verdict.built, verdict.errors) == (True, True, [])


def test_few_casts_and_none_twice(tmp_path: Path) -> None:
    outcome = apply("fp16", ASSETS / "digits_vit.onnx", tmp_path / "out.onnx")
    assert outcome.steps[-1].findings["casts"] == ["pixel_values to float16", "logits_fp16 to float32"]
    assert sum(node.op == "Cast" for node in io.load(tmp_path / "out.onnx").graph.nodes) == 2


def test_fp16_at_the_border(tmp_path: Path) -> None:
    path, output = ASSETS / "digits_vit.onnx", tmp_path / "out.onnx"
    apply("fp16{io=float16}", path, output)
    value = onnx.load(str(output)).graph
    assert [v.type.tensor_type.elem_type for v in (*value.input, *value.output)] == [TensorProto.FLOAT16] * 2
    assert not any(node.op_type == "Cast" for node in value.node)
    assert logits(output, images(4).astype(np.float16)).dtype == np.float16
    source = open_source(DATA, [InputSpec("pixel_values", np.dtype(np.float32), (None, 3, 32, 32))])
    assert compare(path, output, source).outputs[0].max_abs < 0.03


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """The embedded model with a residual stream of 200000: LayerNorms hide it, FP16 cannot hold it."""
    model = onnx.load(str(ASSETS / "digits_vit.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("patch_embed") or tensor.name in ("pos_embed", "cls_token"):
            tensor.CopyFrom(numpy_helper.from_array(1e5 * numpy_helper.to_array(tensor), tensor.name))
    path = tmp_path / "loud.onnx"
    onnx.save(model, str(path))
    return path


def test_the_guard_keeps_what_comes_near_overflow_and_names_it(loud: Path) -> None:
    output = loud.with_name("out.onnx")
    outcome = apply("fp16", loud, output)
    (step,) = outcome.steps
    near = step.findings["near_overflow"]
    assert len(near) >= 6
    assert max(near.values()) > 65504
    assert step.findings["guard_images"] == 16
    assert any("kept in FP32" in text and next(iter(near)) in text for text in outcome.warnings)
    want = logits(loud, images(8))
    np.testing.assert_allclose(numpy_logits(output, images(8)), want, atol=0.05)
    apply("fp16{images=0}", loud, loud.with_name("blind.onnx"))
    assert not np.allclose(numpy_logits(loud.with_name("blind.onnx"), images(8)), want, atol=1)


@pytest.fixture
def causal(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The embedded model, in which a token sees itself and those before it, by a mask that is added."""
    model = onnx.load(str(ASSETS / "digits_vit.onnx"))
    tokens = 17
    mask = np.where(np.tri(tokens, dtype=bool), 0, np.float32(request.param)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type == "Softmax":
            masked = f"{node.input[0]}_masked"
            model.graph.node.insert(index, helper.make_node("Add", [node.input[0], "mask"], [masked]))
            node.input[0] = masked
    path = tmp_path / "causal.onnx"
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("causal", [-1e9, np.finfo(np.float32).min, -np.inf], indirect=True)
def test_masked_logits_are_no_reason_to_leave_fp16(causal: Path, recwarn: pytest.WarningsRecorder) -> None:
    output = causal.with_name("out.onnx")
    outcome = apply("fp16", causal, output)
    assert outcome.steps[0].findings["near_overflow"] == {}
    assert not any("overflow" in str(warning.message) for warning in recwarn)
    np.testing.assert_allclose(numpy_logits(output, images(8)), logits(causal, images(8)), atol=0.05)
    softmax = next(node for node in onnx.load(str(output)).graph.node if node.op_type == "Softmax")
    casts = {name for node in onnx.load(str(output)).graph.node if node.op_type == "Cast" for name in node.output}
    assert not casts & set(softmax.input)


def test_or_it_refuses(loud: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"do not fit FP16(.|\n)*up to"):
        apply("fp16{overflow=refuse}", loud, loud.with_name("out.onnx"))
    assert [path.name for path in loud.parent.iterdir()] == [loud.name]


def edited(tmp_path: Path, name: str, value: float, share: float) -> Path:
    """The embedded model with the first `share` of a tensor's values replaced."""
    model = onnx.load(str(ASSETS / "digits_vit.onnx"))
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[: int(share * values.size)] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, str(tmp_path / "edited.onnx"))
    return tmp_path / "edited.onnx"


def test_a_weight_beyond_fp16_stays_in_fp32_or_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, "blocks.1.mlp.fc1.bias", 1e5, 0.02)
    outcome = manager.plan(path, parse("fp16"), RunOptions(NO_DATA))
    (row,) = [row for row in outcome.steps[0].rows if row.tensor == "blocks.1.mlp.fc1.bias"]
    assert row.skipped
    assert "holds 1e+05" in row.reason
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.mlp\.fc1\.bias \(up to 1e\+05\)"):
        manager.plan(path, parse("fp16{overflow=refuse}"), RunOptions(NO_DATA))


def test_weights_too_small_for_fp16_are_named(tmp_path: Path) -> None:
    path = edited(tmp_path, "blocks.1.mlp.fc1.bias", 4e-8, 1)
    outcome = apply("fp16", path, tmp_path / "out.onnx", NO_DATA)
    assert any("blocks.1.mlp.fc1.bias (49%)" in text for text in outcome.warnings), outcome.warnings


def test_without_data_it_says_what_was_not_checked(tmp_path: Path) -> None:
    outcome = apply("fp16", ASSETS / "digits_vit.onnx", tmp_path / "out.onnx", NO_DATA)
    assert any("on the weights only" in text for text in outcome.warnings)
    assert "guard_images" not in outcome.steps[0].findings


def test_nodes_can_be_kept_by_name(tmp_path: Path) -> None:
    path, output = ASSETS / "digits_vit.onnx", tmp_path / "out.onnx"
    apply("fp16{keep=[Softmax;head]}", path, output)
    structure = analyse(io.load(output))
    (head,) = [site for site in structure.sites if site.role == "head"]
    assert head.dtype == "float"
    assert {structure.types[a.context.inputs[0].name].name for a in structure.attentions} == {"float16"}
    softmax = [node for node in structure.flow.nodes if node.op == "Softmax"]
    assert {structure.types[node.outputs[0].name].name for node in softmax} == {"float32"}
    with pytest.raises(NothingMatched, match="nonesuch"):
        apply("fp16{keep=[nonesuch]}", path, output)


def test_a_bfloat16_model_is_refused(tmp_path: Path) -> None:
    kind = TensorProto.BFLOAT16
    w = helper.make_tensor("w", kind, [8, 8], np.ones(64, np.float32))
    values = [helper.make_tensor_value_info(name, kind, ["n", 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModelError, match="bfloat16 already"):
        apply("fp16", tmp_path / "m.onnx", tmp_path / "out.onnx", NO_DATA)


def test_a_model_without_weights_has_nothing_for_it(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(NothingMatched, match="nothing can become FP16"):
        apply("fp16", tmp_path / "m.onnx", tmp_path / "out.onnx", NO_DATA)


def test_the_recommended_road_is_a_preset(tmp_path: Path) -> None:
    outcome = apply("tensorrt-int8", ASSETS / "digits_vit.onnx", tmp_path / "out.onnx", NO_DATA)
    assert [step.name for step in outcome.steps] == ["prune24", "qdq-int8", "fp16"]
    assert outcome.after.total["packed_bytes"] < 0.4 * outcome.before.total["packed_bytes"]
