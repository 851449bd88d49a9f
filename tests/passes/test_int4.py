"""int4-weights: INT4 in blocks along K in the form that kernels exist for, and MatMulNBits; right in every session."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched, UnsupportedModelError, UsageError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.qdq.codes import codes_of, weight_scales_of
from gpusq_onnx.graph.qdq.float_twin import remove_quantisation
from gpusq_onnx.graph.qdq.weight_only import find_nbits, read_nbits
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.quant.formats import dequantize
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.runtime.tensorrt.parser import parser_verdict
from gpusq_onnx.sparsity.patterns import TWO_FOUR
from tests.graph.small_graphs import normal, proto, rng

ASSETS = Path(__file__).parents[1] / "assets"
NO_DATA = DataOptions()
K, N = 192, 128
FLOAT = TensorProto.FLOAT


def weight(n: int = N, k: int = K) -> Any:
    return normal(n, k, seed=3) / np.float32(np.sqrt(k))


def matmul() -> ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], "m"), helper.make_node("Add", ["p", "b"], ["y"], "a")]
    shapes = [("x", FLOAT, ["batch", 5, K])], [("y", FLOAT, ["batch", 5, N])]
    return proto(nodes, *shapes, {"w": np.ascontiguousarray(weight().T), "b": normal(N)}, opset=20)


def gemm() -> ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "g", transB=1)]
    return proto(nodes, [("x", FLOAT, ["batch", K])], [("y", FLOAT, ["batch", N])], {"w": weight(), "b": normal(N)}, 20)


def transposed() -> ModelProto:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "t", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], "m"),
    ]
    return proto(nodes, [("x", FLOAT, ["batch", 5, K])], [("y", FLOAT, ["batch", 5, N])], {"w": weight()}, opset=20)


def split() -> ModelProto:
    sizes = np.array([64, 64])
    nodes = [
        helper.make_node("Split", ["w", "sizes"], ["one", "two"], "s", axis=1),
        helper.make_node("MatMul", ["x", "one"], ["y"], "m1"),
        helper.make_node("MatMul", ["x", "two"], ["z"], "m2"),
    ]
    ends = [("y", FLOAT, ["batch", 5, 64]), ("z", FLOAT, ["batch", 5, 64])]
    constants = {"w": np.ascontiguousarray(weight().T), "sizes": sizes}
    return proto(nodes, [("x", FLOAT, ["batch", 5, K])], ends, constants, opset=20)


FORMS = {"matmul": matmul, "gemm": gemm, "transposed": transposed, "split": split}


def apply(model: ModelProto | Path, passes: str, folder: Path, data: DataOptions = NO_DATA) -> tuple[Outcome, Path]:
    source = model if isinstance(model, Path) else folder / "model.onnx"
    if isinstance(model, ModelProto):
        onnx.save_model(model, str(source))
    return manager.run(source, folder / "out.onnx", parse(passes), RunOptions(data)), folder / "out.onnx"


def run(path: Path, x: Any, level: str = "ORT_ENABLE_ALL") -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def data_of(model: ModelProto) -> Any:
    dims = [dim.dim_value or 3 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return rng(1).standard_normal(dims).astype(np.float32)


def apart(found: list[Any], wanted: list[Any]) -> float:
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True))


def float_reference(path: Path, x: Any, folder: Path) -> list[Any]:
    """What the written codes and scales say, in plain float MatMuls."""
    model = io.load(path)
    for found in find_nbits(model):
        w = dequantize(*read_nbits(found))
        found.node.inputs[1].values = np.ascontiguousarray(w.T)
        found.node.inputs = found.node.inputs[:2]
        found.node.op, found.node.domain, found.node.attrs = "MatMul", None, {}
    remove_quantisation(model)
    twin = folder / "twin.onnx"
    io.write_tapped(model, twin, [spec.name for spec in model.outputs()])
    return run(twin, x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_sessions_compute_what_the_codes_say(form: str, runtime: str, tmp_path: Path) -> None:
    model = FORMS[form]()
    _, out = apply(model, f"int4-weights{{for={runtime},only=*}}", tmp_path)
    x = data_of(model)
    wanted = float_reference(out, x, tmp_path)
    assert apart(run(out, x), wanted) < 0.02  # data in INT8 inside the fused kernel
    if runtime == "tensorrt":
        assert apart(run(out, x, "ORT_DISABLE_ALL"), wanted) < 1e-5
    in_float = run(tmp_path / "model.onnx", x)
    assert 0.01 < apart(wanted, in_float) < 0.15  # that is 4 bits


def test_accuracy_level_1_keeps_the_data_in_float(tmp_path: Path) -> None:
    _, out = apply(matmul(), "int4-weights{runtime=onnxruntime,accuracy_level=1,only=*}", tmp_path)
    x = data_of(matmul())
    assert apart(run(out, x), float_reference(out, x, tmp_path)) < 1e-5


@pytest.mark.parametrize("block", [16, 64])
def test_onnxruntime_computes_int4_along_axis_0_right(block: int, tmp_path: Path) -> None:
    """Issue 749 of onnxsim reports that onnxruntime 1.29 did not; written here by hand, with no code of ours."""
    codes = rng(5).integers(-8, 8, (K, N))
    scale = rng(6).uniform(0.01, 0.1, (K // block, N)).astype(np.float32)
    stored = helper.make_tensor("w", TensorProto.INT4, codes.shape, codes.reshape(-1).tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], "d", axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "d"], ["y"], "m"),
    ]
    model = proto(nodes, [("x", FLOAT, [7, K])], [("y", FLOAT, [7, N])], {"s": scale}, opset=21)
    model.graph.initializer.append(stored)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, str(path))
    x = normal(7, K)
    wanted = [x @ (codes * np.repeat(scale, block, 0)).astype(np.float32)]
    assert apart(run(path, x, "ORT_DISABLE_ALL"), wanted) < 1e-5
    assert apart(run(path, x), wanted) < 0.02


@pytest.mark.parametrize("form", FORMS)
def test_the_form_that_kernels_read(form: str, tmp_path: Path) -> None:
    _, out = apply(FORMS[form](), "int4-weights{only=*}", tmp_path)
    written = onnx.load_model(str(out))
    assert next(o.version for o in written.opset_import if not o.domain) == 21
    assert not {"Transpose", "Split", "QuantizeLinear"} & {node.op_type for node in written.graph.node}
    assert not {"w"} & {tensor.name for tensor in written.graph.initializer}
    model = io.load(out)
    assert not invariants.violations(model)
    for site in analyse(model).sites:
        (dequantize_node,) = site.trail
        assert dequantize_node.attrs == {"axis": 0, "block_size": 64}
        assert len(dequantize_node.inputs) == 2
        assert site.readers[0].attrs.get("transB", 0) == 0
        assert weight_scales_of(site).block == 64
        assert np.abs(codes_of(site).astype(int)).max() <= 8
    assert out.stat().st_size < 0.25 * (tmp_path / "model.onnx").stat().st_size


@pytest.mark.parametrize("form", ["matmul", "gemm"])
def test_tensorrt_parses_and_builds_it_small(form: str, harness: Path, tmp_path: Path) -> None:
    _, out = apply(FORMS[form](), "int4-weights{only=*}", tmp_path)
    verdict = parser_verdict(out, harness=harness, build=True)
    assert (verdict.ok, verdict.errors, verdict.built) == (True, [], True)


def test_int4_blocks_beside_an_int8_pair_are_refused_as_they_cannot_be_built(harness: Path, tmp_path: Path) -> None:
    _, out = apply(matmul(), "int4-weights{only=*}", tmp_path)
    model = onnx.load_model(str(out))
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    for op, read, made in (("QuantizeLinear", "x", "q"), ("DequantizeLinear", "q", "dx")):
        model.graph.node.insert(0, helper.make_node(op, [read, "xs", "xz"], [made], op))
    model.graph.node.insert(0, model.graph.node.pop(1))
    product.input[0] = "dx"
    for name, value in (("xs", np.float32(0.03)), ("xz", np.int8(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    path = tmp_path / "w4a8.onnx"
    onnx.save_model(model, str(path))
    assert any("cannot build it" in text for text in invariants.violations(io.load(path)))
    verdict = parser_verdict(path, harness=harness, build=True)
    assert not verdict.built


@pytest.mark.parametrize("name", ["digits_vit", "digits_vit_legacy17"])
@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_the_digits_lose_little_and_everything_that_reads_graphs_takes_them(
    name: str, runtime: str, tmp_path: Path
) -> None:
    outcome, out = apply(
        ASSETS / f"{name}.onnx", f"prune24{{method=magnitude}},int4-weights{{for={runtime}}}", tmp_path
    )
    short = [warning for warning in outcome.warnings if "TensorRT documents 64 and 128" in warning]
    assert len(short) == (runtime == "tensorrt")  # K = 48
    planned = manager.plan(ASSETS / f"{name}.onnx", parse(outcome.pipeline), RunOptions(NO_DATA))
    assert [row for step in planned.steps for row in step.rows] == [row for step in outcome.steps for row in step.rows]
    assert planned.after.total["dense_macs"] == outcome.after.total["dense_macs"]
    inspection = inspect_model(io.load(out))
    four = [weight for weight in inspection.weights if weight.format == "int4"]
    assert len(four) == 12
    assert len(inspection.weights) == 14
    assert all(w.quantised == ("weight",) and w.scale_block == 16 for w in four if w.shape[1] == 48)
    assert {str(w.kernel) for w in four} == ({"dense FP32 x INT4"} if runtime == "tensorrt" else {"onnxruntime only"})
    assert all("2:4" in weight.patterns for weight in four)
    ratio = outcome.after.total["bit_operations"] / outcome.before.total["bit_operations"]
    assert ratio < (0.17 if runtime == "tensorrt" else 0.22)  # MatMulNBits nodes count dense
    with np.load(ASSETS / "digits_test.npz") as stored:
        x, labels = stored["pixel_values"][:200].astype(np.float32), stored["labels"][:200]
    assert (run(out, x)[0].argmax(1) == labels).mean() > 0.7  # 2:4 by magnitude costs more than INT4 does
    session = run(out, x, "ORT_DISABLE_ALL")[0]
    assert np.isfinite(session).all()


@pytest.mark.long
def test_with_data_it_is_closer_to_the_dense_model(tmp_path: Path) -> None:
    with np.load(ASSETS / "digits_test.npz") as stored:
        x = stored["pixel_values"].astype(np.float32)
    wanted = run(ASSETS / "digits_vit.onnx", x)
    found = {}
    for rounding in ("auto", "nearest"):
        passes = parse(f"int4-weights{{block=16,rounding={rounding}}}")
        outcome = manager.run(
            ASSETS / "digits_vit.onnx",
            tmp_path / f"{rounding}.onnx",
            passes,
            RunOptions(DataOptions(path=ASSETS / "digits_train.npz", samples=128)),
        )
        reasons = [row.reason for row in outcome.steps[-1].rows if not row.skipped]
        assert all(("GPTQ" in reason) == (rounding == "auto") for reason in reasons)
        found[rounding] = apart(run(tmp_path / f"{rounding}.onnx", x, "ORT_DISABLE_ALL"), wanted)
    assert found["auto"] < 0.7 * found["nearest"]


def test_patterns_hold_on_the_stored_codes(tmp_path: Path) -> None:
    passes = "prune24{method=magnitude},int4-weights"
    outcome, out = apply(ASSETS / "digits_vit_legacy17.onnx", passes, tmp_path)
    sites = [site for site in analyse(io.load(out)).sites if site.quantised == "int4"]
    assert len(sites) == 12 and all(TWO_FOUR.holds(codes_of(site)) for site in sites)
    assert sum("2:4" in fact for fact in outcome.steps[0].facts) == 12


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_fp16_after_it(runtime: str, tmp_path: Path) -> None:
    _, out = apply(ASSETS / "digits_vit.onnx", f"int4-weights{{for={runtime}}},fp16", tmp_path)
    with np.load(ASSETS / "digits_test.npz") as stored:
        x, labels = stored["pixel_values"][:200].astype(np.float32), stored["labels"][:200]
    assert (run(out, x)[0].argmax(1) == labels).mean() > 0.9
    if runtime == "tensorrt":
        kinds = {str(weight.kernel) for weight in inspect_model(io.load(out)).weights if weight.format == "int4"}
        assert kinds == {"dense FP16 x INT4"}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("block=auto", 64),
        ("for=onnxruntime", 32),
        ("block=128,for=onnxruntime", 64),
        ("block=64", 64),
        ("block=32", 32),
        ("block=16", 16),
    ],
)
def test_blocks_divide_k_and_are_no_longer_than_asked(asked: str, found: int, tmp_path: Path) -> None:
    onnx.save_model(matmul(), str(tmp_path / "model.onnx"))
    planned = manager.plan(tmp_path / "model.onnx", parse(f"int4-weights{{{asked},only=*}}"), RunOptions(NO_DATA))
    (row,) = planned.steps[-1].rows
    assert row.detail.block == found
    assert f"one scale for each {found} weights along K" in row.reason
    assert ("TensorRT documents" in row.reason) == (found < 64 and "onnxruntime" not in asked)


def test_a_reduction_that_no_block_divides_leaves_the_weight_and_says_so(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "m")]
    model = proto(nodes, [("x", FLOAT, [1, 40])], [("y", FLOAT, [1, 32])], {"w": normal(40, 32)}, opset=20)
    with pytest.raises(NothingMatched, match="no weight can be stored in 4 bits") as caught:
        apply(model, "int4-weights{only=*}", tmp_path)
    assert "no block of 64 or 32 or 16 divides K = 40" in str(caught.value.details["found"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_convolutions_stay_as_they_are(tmp_path: Path) -> None:
    planned = manager.plan(ASSETS / "digits_vit.onnx", parse("int4-weights{only=[Conv;fc1]}"), RunOptions(NO_DATA))
    reasons = {row.role: row.reason for row in planned.steps[-1].rows}
    assert reasons["patch_embed"] == "a convolution: no kernel reads its weights in 4 bits"


@pytest.mark.parametrize("options", ["block=48", "runtime=tensorflow", "accuracy_level=5", "clip=entropy"])
def test_options_that_there_are_not(options: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        apply(matmul(), f"int4-weights{{{options}}}", tmp_path)


def test_a_model_of_matmulnbits_is_refused(tmp_path: Path) -> None:
    _, out = apply(matmul(), "int4-weights{for=onnxruntime,only=*}", tmp_path)
    again = tmp_path / "again.onnx"
    out.rename(again)
    with pytest.raises(UnsupportedModelError, match="4-bit weights already"):
        apply(again, "int4-weights", tmp_path)
