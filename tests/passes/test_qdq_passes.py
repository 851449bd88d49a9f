"""qdq-int8: pairs exactly where the table puts them, legal for TensorRT, and close to the float model."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import Is, operators
from gpusq_onnx.graph.qdq.codes import codes_of
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.passes.prune import Prune24
from gpusq_onnx.passes.qdq import QdqInt8
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.base import Context, PlanContext, PlanRow
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.sparsity.patterns import Pattern

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ["digits_vit.onnx", "digits_vit_legacy17.onnx"]
BLOCKS = 3


def _load(name: str = MODELS[0]) -> Model:
    return io.load(ASSETS / name)


def _data(model: Model, file: str, samples: int):  # type: ignore[no-untyped-def]
    inputs = [InputSpec(s.name, s.dtype, s.shape) for s in model.inputs()]
    return open_source(DataOptions(path=ASSETS / file, samples=samples), inputs)


def _run(model: Model, **options: object) -> tuple[list[PlanRow], Context]:
    quantise = QdqInt8(QdqInt8.Options(**options))
    structure = analyse(model)
    quantise.requires(model, structure)
    plan = quantise.plan(model, structure, PlanContext(data=True))
    context = Context(source=_data(model, "digits_train.npz", 64))
    quantise.apply(model, structure, plan, context)
    return plan, context


def _logits(model: Model) -> np.ndarray:
    session = Session(io.to_bytes(model), exact_qdq=True)
    return np.concatenate([session.run(b.feed)["logits"] for b in _data(model, "digits_test.npz", 128).batches(64)])


def _prune(model: Model) -> None:
    prune = Prune24(Prune24.Options(method="magnitude"))
    structure = analyse(model)
    prune.apply(model, structure, prune.plan(model, structure, PlanContext()), Context())


@pytest.mark.parametrize("name", MODELS)
def test_accurate_places_what_the_table_says(name: str) -> None:
    model = _load(name)
    _run(model, profile="accurate")
    assert not invariants.violations(model)
    structure = analyse(model)
    quantised = [site for site in structure.sites if site.quantised]
    assert Counter(site.role for site in quantised) == dict.fromkeys(("qkv", "proj", "fc1", "fc2"), BLOCKS)
    for site in quantised:
        assert site.readers[0].inputs[0].inputs[0].op == "DequantizeLinear"  # its input is quantised, too
        assert all(node.op != "QuantizeLinear" for node in site.output.outputs)  # and its output is not
    for attention in structure.attentions:
        operands = [*attention.scores.inputs, *attention.context.inputs]
        assert all(tensor.inputs[0].op == "DequantizeLinear" for tensor in operands)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_sparse_int8_adds_the_outputs_of_pruned_linears_and_only_of_those(name: str) -> None:
    dense, pruned = _load(name), _load(name)
    _prune(pruned)
    for model, outputs in ((dense, 0), (pruned, 4 * BLOCKS)):
        _run(model, profile="sparse-int8")
        sites = [site for site in analyse(model).sites if site.quantised]
        after = [all(node.op == "QuantizeLinear" for node in site.output.outputs) for site in sites]
        assert sum(after) == outputs
    assert not invariants.violations(pruned)


@pytest.mark.parametrize("profile", ["accurate", "sparse-int8"])
def test_residual_norm_and_activation_inputs_stay_float_in_accurate(profile: str) -> None:
    model = _load()
    _prune(model)
    _run(model, profile=profile)
    for node in model.graph.nodes:
        fed_by_pair = [t for t in node.inputs if t.inputs and t.inputs[0].op == "DequantizeLinear"]
        if node.op == "LayerNormalization" or (
            profile == "accurate" and (node.op == "Add" or node.op in operators(Is.ACTIVATES))
        ):
            assert not fed_by_pair, node.name


def test_one_pair_a_tensor_shared_by_its_readers() -> None:
    model = _load()
    _run(model)
    quantised = [node.inputs[0].name for node in model.graph.nodes if node.op == "QuantizeLinear"]
    assert len(quantised) == len(set(quantised))


@pytest.mark.parametrize("options", [{}, {"profile": "sparse-int8", "outputs": "all"}, {"equalise": False}])
def test_close_to_the_float_model(options: dict[str, object]) -> None:
    model = _load()
    _run(model, **options)
    wanted, found = _logits(_load()), _logits(model)
    assert (wanted.argmax(axis=1) == found.argmax(axis=1)).mean() > 0.985
    cosine = (wanted * found).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.mean() > 0.995


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "snr", "entropy"])
def test_every_observer_gives_a_usable_model(observer: str) -> None:
    model = _load()
    _, context = _run(model, observer=observer)
    assert all(scale > 0 for scale in context.findings["scales"].values())
    assert (_logits(_load()).argmax(axis=1) == _logits(model).argmax(axis=1)).mean() > 0.97


def test_the_softmax_scale_is_fixed_on_demand() -> None:
    for choice, least in (("fixed", 1 / 127), ("observed", 0.1 / 127)):
        model = _load()
        plan, context = _run(model, softmax=choice)
        scales = [context.findings["scales"][row.tensor] for row in plan if row.role == "softmax"]
        assert len(scales) == BLOCKS and all(least - 1e-9 <= scale <= 1 / 127 + 1e-9 for scale in scales)


def test_attention_can_be_left_alone_and_says_so() -> None:
    model = _load()
    plan, _ = _run(model, attention=False)
    rows = [row for row in plan if row.role in ("Q", "K", "softmax", "V")]
    assert rows and all(row.skipped and row.reason == "attention=false" for row in rows)


def test_int8_codes_are_the_same_model_on_a_third_of_the_disk() -> None:
    as_float, as_codes = _load(), _load()
    _prune(as_float)
    _prune(as_codes)
    _run(as_float)
    _run(as_codes, weights="int8")
    np.testing.assert_allclose(_logits(as_codes), _logits(as_float), atol=1e-4)
    assert len(io.to_bytes(as_codes)) < 0.6 * len(io.to_bytes(as_float))
    assert not invariants.violations(as_codes)
    sites = [site for site in analyse(as_codes).sites if site.quantised]
    assert {site.quantised for site in sites} == {"int8"}
    assert all(Pattern(2, 4).holds(codes_of(site)) for site in sites)


def test_the_pattern_survives_equalising_and_rounding() -> None:
    model = _load()
    _prune(model)
    _run(model)
    quantised = [site for site in analyse(model).sites if site.quantised]
    assert len(quantised) == 4 * BLOCKS
    assert all(Pattern(2, 4).holds(site.read()) and Pattern(2, 4).holds(codes_of(site)) for site in quantised)


def test_a_quantised_model_is_refused() -> None:
    model = _load()
    _run(model)
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        _run(model)


def test_codes_that_nobody_reads_quantise_no_model(tmp_path: Path) -> None:
    proto = onnx.load(ASSETS / MODELS[0])
    for name, value in {"q": np.zeros(4, np.int8), "s": np.float32(1)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s"], ["unread"]))
    onnx.save(proto, tmp_path / "dead.onnx")
    plan, _ = _run(io.load(tmp_path / "dead.onnx"))
    assert Counter(row.decision for row in plan)["quantise weight"] == 4 * BLOCKS


def test_a_tied_weight_gets_a_pair_for_each_input_that_its_readers_read(tmp_path: Path) -> None:
    """x -> w -> * 50 -> w: one matrix, two inputs of very different range."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((8, 8)) / 3).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "fifty"], ["big"]),
        helper.make_node("MatMul", ["big", "w"], ["z"]),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.float32(50), "fifty")],
    )
    path = tmp_path / "tied.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    x = rng.standard_normal((64, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    model, wanted = io.load(path), Session(path).run({"x": x})["y"]
    quantise = QdqInt8(QdqInt8.Options(only=["w"], observer="minmax", smallest=8))
    structure = analyse(model)
    plan = quantise.plan(model, structure, PlanContext(data=True))
    assert [row.tensor for row in plan if row.role.startswith("input")] == ["x", "big"]
    spec = InputSpec("x", np.dtype(np.float32), ("batch", 8))
    context = Context(source=open_source(DataOptions(path=tmp_path / "x.npy"), [spec]))
    quantise.apply(model, structure, plan, context)
    assert not invariants.violations(model)
    products = [node for node in model.graph.nodes if node.op == "MatMul"]
    read = [node.inputs[0].inputs[0].inputs[1].values for node in products]  # each DequantizeLinear's scale
    assert read[1] / read[0] > 10
    assert products[0].inputs[1] is products[1].inputs[1]
    found = Session(io.to_bytes(model), exact_qdq=True).run({"x": x})["y"]
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_scale_that_half_precision_cannot_hold_is_raised(tmp_path: Path) -> None:
    """A BatchNorm folded into a Conv leaves channels of almost nothing."""
    w = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float16)
    w[:, 3] = 1e-5
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [4, 32])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, [4, 32])
    product, stored = helper.make_node("MatMul", ["x", "w"], ["y"]), numpy_helper.from_array(w, "w")
    graph = helper.make_graph([product], "g", [x], [y], [stored])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    manager.run(tmp_path / "m.onnx", tmp_path / "out.onnx", parse("qdq-int8{only=[*]}"), RunOptions(DataOptions()))
    halves = [t for t in onnx.load(tmp_path / "out.onnx").graph.initializer if t.data_type == TensorProto.FLOAT16]
    scales = [numpy_helper.to_array(t) for t in halves if t.dims == [32]]
    assert min(scale.min() for scale in scales) >= 2.0**-14
