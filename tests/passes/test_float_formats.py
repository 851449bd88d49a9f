"""qdq-fp8 and qdq-nvfp4 end to end on the digits ViT: forms, twin, proof, check, inspect, cost, pack, qat, errors."""

from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from gpusq_onnx.calibration.quantising_pass import no_blocks
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched, UsageError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.operators import FP4_QUANTISER
from gpusq_onnx.graph.pack.archive import pack_model, unpack_model
from gpusq_onnx.graph.qdq.codes import codes_of, quantised, weight_scales_of
from gpusq_onnx.graph.qdq.simulated import NOTES, runs_as, twin_of
from gpusq_onnx.graph.rewrites.attention_scale import move_scale, scale_to_move
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.learn.rescaling import recalibrate
from gpusq_onnx.pipeline import grammar, manager
from gpusq_onnx.pipeline.details import OperandPair, rows_with
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.quant.dynamic import dynamic_quantize, two_level
from gpusq_onnx.quant.formats import FP4, FP8, dequantize, fake_quantize
from gpusq_onnx.quant.schemes import SCHEMES
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.runtime.compare.gates import Gates
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.tensorrt.parser import parser_verdict
from gpusq_onnx.workflows.check import check

ASSETS = Path(__file__).parents[1] / "assets"
LEGACY, DYNAMO = ASSETS / "digits_vit_legacy17.onnx", ASSETS / "digits_vit.onnx"
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=16)
TEST = ASSETS / "digits_test.npz"
LINEARS = 12


def apply(passes: str, target: Path, model: Path = LEGACY) -> Outcome:
    return manager.run(model, target, grammar.parse(passes), RunOptions(DATA))


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fp8") / "fp8.onnx"
    outcome = apply("qdq-fp8", target, DYNAMO)
    assert outcome.proof is not None and outcome.proof.default == "unfused: ran"
    assert NOTES["exact"] in outcome.warnings
    return target


@pytest.fixture(scope="module")
def nvfp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("nvfp4") / "nvfp4.onnx"
    outcome = apply("qdq-nvfp4", target)
    assert outcome.proof is not None and outcome.proof.default == "twin: ran"
    assert NOTES["twin"] in outcome.warnings
    return target


def run(model: object, x: np.ndarray) -> np.ndarray:
    session = Session(io.to_bytes(model), exact_qdq=True)  # type: ignore[arg-type]
    return session.run({session.inputs()[0].name: x})[session.outputs()[0].name]


def test_fp8_has_a_scale_a_channel_and_attention_as_tensorrt_fuses_it(fp8: Path) -> None:
    model = io.load(fp8)
    assert (model.opset, runs_as(model)) == (20, "exact")
    structure = analyse(model)
    sites = [site for site in structure.sites if site.quantised]
    assert len(sites) == LINEARS
    for site in sites:
        found = quantised(site)
        assert found.weight is FP8 and found.input is FP8
        assert weight_scales_of(site).values.shape == (site.out,)
    for attention in structure.attentions:
        assert isinstance(scale_to_move(attention), str), "nothing is left to move"
        for product in (attention.scores, attention.context):
            assert {tensor.inputs[0].op for tensor in product.inputs} == {"DequantizeLinear"}
        assert attention.scores.outputs[0].outputs[0].op == "Softmax"
    assert invariants.violations(model) == []


def test_the_factor_of_the_scores_moves_before_q_and_nothing_changes() -> None:
    model, x = io.load(DYNAMO), np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    x = x[:, : model.inputs()[0].shape[1], : model.inputs()[0].shape[2], : model.inputs()[0].shape[3]]  # type: ignore[misc]
    before, structure = run(model, x), analyse(model)
    moved = [scale_to_move(attention) for attention in structure.attentions]
    for attention in structure.attentions:
        move_scale(model, attention)
    assert all(isinstance(found, float) for found in moved)
    computed = [scale_to_move(attention) for attention in analyse(io.load(LEGACY)).attentions]
    assert set(computed) == {"the factor on K is computed: it stays"}
    again = analyse(model)
    assert all(isinstance(scale_to_move(attention), str) for attention in again.attentions)
    np.testing.assert_allclose(run(model, x), before, rtol=1e-4, atol=1e-4)


def test_nvfp4_has_blocks_of_two_levels_and_activations_at_run_time(nvfp4: Path) -> None:
    proto = onnx.load(nvfp4)
    onnx.checker.check_model(proto)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 23, "trt": 1}
    assert proto.ir_version >= 11
    model = io.load(nvfp4)
    assert runs_as(model) == "twin" and invariants.violations(model) == []
    assert model.metadata["pkg.gpusq_onnx.not_proven"] == NOTES["twin"]
    float_structure, structure = analyse(io.load(LEGACY)), analyse(model)
    assert [site.role for site in structure.sites] == [site.role for site in float_structure.sites]
    sites = [site for site in structure.sites if site.quantised]
    assert len(sites) == LINEARS
    for site in sites:
        found, scales = quantised(site), weight_scales_of(site)
        assert found.weight is FP4 and found.input is FP4 and site.dtype == "float4e2m1"
        assert scales.values.shape == (site.out, site.k // 16) and scales.outer is not None
        assert np.array_equal(scales.values, scales.values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
        source = next(one for one in float_structure.sites if site.name.startswith(one.name))
        error = np.linalg.norm(dequantize(codes_of(site), scales) - source.read()) / np.linalg.norm(source.read())
        assert error < 0.15
    assert sum(node.op == FP4_QUANTISER for node in model.graph.nodes) == LINEARS
    assert nvfp4.stat().st_size < LEGACY.stat().st_size / 2


def test_packing_counts_weights_and_not_the_scales_of_their_blocks(nvfp4: Path) -> None:
    with pytest.raises(NothingMatched) as caught:
        pack_model(nvfp4, nvfp4.with_name("packed.gpusq"))
    assert caught.value.details["found"] == f"{LINEARS} weights stored as codes already, and dense"


def test_the_twin_computes_what_the_formats_say(nvfp4: Path) -> None:
    model = io.load(nvfp4)
    twin = twin_of(model)
    assert runs_as(twin) == "default" and runs_as(model) == "twin"
    node = next(node for node in model.graph.nodes if node.op == FP4_QUANTISER)
    source, made = node.inputs[0].name, node.outputs[0].outputs[0].outputs[0].name
    path = nvfp4.with_name("tapped.onnx")
    io.write_tapped(twin, path, [source, made])
    shape = [n if isinstance(n, int) else 2 for n in model.inputs()[0].shape]
    feed = {model.inputs()[0].name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    for optimize in (True, False):
        found = Session(path, optimize=optimize).run(feed)
        outer = float(node.inputs[1].values)
        np.testing.assert_array_equal(found[made], dynamic_quantize(found[source], outer, FP4, 16))


def test_floats_before_their_pairs_and_weights_alone(tmp_path: Path) -> None:
    apply("qdq-nvfp4{weights=float,activations=none}", tmp_path / "float.onnx")
    model = io.load(tmp_path / "float.onnx")
    assert not any(node.op == FP4_QUANTISER for node in model.graph.nodes)
    sites = [site for site in analyse(model).sites if site.quantised == "qdq"]
    assert len(sites) == LINEARS
    for site in sites:
        w, scales = site.read(), weight_scales_of(site)
        np.testing.assert_array_equal(w, fake_quantize(w, scales, FP4))  # written on their grid
    (site, *_) = sites
    site.write(site.read() * np.float32(2))
    before = weight_scales_of(site)
    assert recalibrate(analyse(model).sites) == 1
    after = weight_scales_of(next(one for one in analyse(model).sites if one.name == site.name))
    assert after.outer is not None and before.outer is not None
    np.testing.assert_allclose(after.along((site.out, site.k)), 2 * before.along((site.out, site.k)), rtol=0.5)
    assert np.median(after.along((site.out, site.k)) / before.along((site.out, site.k))) == pytest.approx(2, rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_check_runs_what_there_is_and_says_so(name: str, request: pytest.FixtureRequest) -> None:
    written, original = request.getfixturevalue(name), DYNAMO if name == "fp8" else LEGACY
    found = check(original, written, data=TEST, gates=Gates(min_cosine=0.9))
    assert found.passed and found.comparison.default is None
    assert found.notes == (NOTES["exact" if name == "fp8" else "twin"],)


@pytest.mark.long
@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_tensorrt_parses_and_builds(name: str, request: pytest.FixtureRequest, harness: Path) -> None:
    verdict = parser_verdict(request.getfixturevalue(name), harness=harness, build=True)
    assert verdict.ok and verdict.built, verdict.errors


@pytest.mark.parametrize(("name", "label"), [("fp8", "FP8"), ("nvfp4", "FP4")])
def test_inspect_and_cost(name: str, label: str, request: pytest.FixtureRequest) -> None:
    found = inspect_model(io.load(request.getfixturevalue(name)))
    assert found.kernels[f"dense {label}"] == LINEARS
    passes = grammar.parse(f"qdq-{name}")
    planned = manager.plan(DYNAMO, passes, RunOptions(DATA))
    row = next(row for row in planned.steps[0].rows if row.role == "fc1" and not row.skipped)
    bits = {"FP8": 8, "FP4": 4}[label]
    assert planned.after.sites[row.tensor]["packed_bytes"] == planned.before.sites[row.tensor]["parameters"] * bits / 8
    if name == "fp8":
        rows = [row for row, pair in rows_with(planned.steps[0].rows, OperandPair) if pair.operand == "Q"]
        assert rows and all("moves before it" in row.reason for row in rows)


@pytest.mark.long
@pytest.mark.parametrize("passes", ["qdq-fp8{weights=fp8}", "qdq-nvfp4{activations=none}"])
def test_packed_and_back(passes: str, tmp_path: Path) -> None:
    written, packed, back = (tmp_path / name for name in ("small.onnx", "small.gpusq", "back.onnx"))
    apply("prune24{method=magnitude,head=true}," + passes, written)
    contents = pack_model(written, packed)
    assert contents.weights
    unpack_model(packed, back)
    assert back.read_bytes() == written.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    "passes",
    [
        pytest.param("prune24{method=magnitude},qdq-fp8,qat{epochs=1,steps=2}", marks=pytest.mark.slow),
        pytest.param("qdq-nvfp4{weights=float},qat{epochs=1,steps=2}", marks=pytest.mark.slow),
        "qdq-nvfp4,qat{epochs=1,steps=2}",
    ],
)
def test_qat_trains_it(passes: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    outcome = apply(passes, tmp_path / "trained.onnx")
    soft = outcome.steps[-1].findings["soft"]
    assert 0 < soft["after"] < 2 * soft["before"] < 1
    assert invariants.violations(io.load(tmp_path / "trained.onnx")) == []


def test_fp8_goes_on_to_fp16(tmp_path: Path) -> None:
    apply("qdq-fp8,fp16", tmp_path / "half.onnx")
    sites = [site for site in analyse(io.load(tmp_path / "half.onnx")).sites if site.quantised]
    assert len(sites) == LINEARS and all(quantised(site).weight is FP8 for site in sites)


@pytest.mark.parametrize(
    ("passes", "error", "says"),
    [
        ("qdq-fp8{observer=entropy}", UsageError, "observer=entropy"),
        ("qdq-nvfp4{observer=entropy}", UsageError, "snr, mse, percentile or minmax"),
        ("qdq{scheme=fp8,observer=entropy}", UsageError, "observer=minmax"),
        ("qdq-nvfp4{activations=static}", UsageError, "'dynamic' or 'none'"),
        ("qdq-fp8{weights=int8}", UsageError, "'float' or 'fp8'"),
        ("fp16,qdq-nvfp4", UsageError, "takes a float32 model"),
        ("qdq-nvfp4,fp16", UsageError, "leave one of the two out"),
        ("qdq-nvfp4{rounding=gptq}", UsageError, "rounding"),
        ("qdq{scheme=nvfp4}", UsageError, "qdq-nvfp4"),
    ],
)
def test_what_cannot_be(passes: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error) as caught:
        apply(passes, tmp_path / "none.onnx")
    assert says in str(caught.value)
    assert not (tmp_path / "none.onnx").exists()


def test_blocks_need_whole_blocks_and_a_matrix_product() -> None:
    conv, odd, good = (SimpleNamespace(is_linear=linear, k=k) for linear, k in ((False, 48), (True, 40), (True, 48)))
    scheme = SCHEMES["nvfp4"]
    assert "MatMul and Gemm" in str(no_blocks(conv, scheme))  # type: ignore[arg-type]
    assert "no multiple of the block of 16" in str(no_blocks(odd, scheme))  # type: ignore[arg-type]
    assert no_blocks(good, scheme) is None  # type: ignore[arg-type]
    assert no_blocks(conv, SCHEMES["fp8"]) is None  # type: ignore[arg-type]


def test_scales_of_two_levels_stay_positive() -> None:
    values = np.array([[1.0, 1e-9], [1e-3, 0.5]], np.float32)
    scales = two_level(values, 16, FP8)
    assert scales.outer == pytest.approx(1 / 448)
    assert scales.values.min() == 2.0**-9 and scales.values.max() == 448
    np.testing.assert_allclose(scales.along((2, 32))[:, ::16], np.maximum(values, 2.0**-9 / 448), rtol=0.07)


def test_static_fp4_activations_break_a_rule() -> None:
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q", axis=1, block_size=16),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "d", axis=1, block_size=16),
    ]
    value = onnx.helper.make_tensor_value_info
    constants = {"s": np.ones((2, 2), np.float32), "z": np.zeros((2, 2), ml_dtypes.float4_e2m1fn)}
    graph = onnx.helper.make_graph(
        nodes,
        "static",
        [value("x", 1, [2, 32])],
        [value("y", 1, [2, 32])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = io.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)]), None)
    found = invariants.violations(model, (invariants.blocks, invariants.block_sizes))
    assert found and all("at run time only" in text for text in found)


WINDOW = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def convolutions(path: Path, activation: str, pooled: bool = False) -> None:
    """Four Convs, whose inner ones are quantised, with `activation` between them, and a MaxPool where asked for."""
    rng = np.random.default_rng(0)
    bounds = {"low": np.zeros((), np.float32), "high": np.full((), 6, np.float32)}
    nodes, x, c = [], "image", 3
    for i in range(4):
        bounds[f"w{i}"] = (rng.standard_normal((32, c, 3, 3)) * (2 / c / 9) ** 0.5).astype(np.float32)
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"y{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        inputs = [f"y{i}", *{"Relu": [], "Clip": ["low", "high"], "above": ["low"], "below": ["", "high"]}[activation]]
        nodes.append(helper.make_node("Relu" if activation == "Relu" else "Clip", inputs, [f"a{i}"], name=f"act{i}"))
        x, c = f"a{i}", 32
        if pooled:
            nodes.append(helper.make_node("MaxPool", [x], [f"p{i}"], name=f"pool{i}", **WINDOW))
            x = f"p{i}"
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", channels, 32, 32])
        for name, channels in (("image", 3), (x, 32))
    ]
    weights = [numpy_helper.from_array(values, name) for name, values in bounds.items()]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize(
    ("activation", "pooled"), [("Relu", False), ("Clip", False), ("above", False), ("below", False), ("Relu", True)]
)
@pytest.mark.parametrize("passes", ["qdq-fp8", "qdq-int4{deployment=native,activations=int4}"])
def test_onnxruntime_takes_what_lies_before_codes(activation: str, pooled: bool, passes: str, tmp_path: Path) -> None:
    convolutions(tmp_path / "in.onnx", activation, pooled)
    outcome = manager.run(tmp_path / "in.onnx", tmp_path / "out.onnx", grammar.parse(passes), RunOptions(DataOptions()))
    assert outcome.proof is not None and outcome.proof.outputs
    assert all(one.relative is not None and one.relative < 0.1 for one in outcome.proof.outputs)
    feed = {"image": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}
    (default,), (plain,) = (
        Session(tmp_path / "out.onnx", optimize=optimize).run(feed).values() for optimize in (True, False)
    )
    assert np.linalg.norm(default - plain) < 0.1 * np.linalg.norm(plain), "a dropped Relu moves it by half"
