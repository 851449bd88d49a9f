"""canonical comes by itself where it has something to do, and is a step like any other then."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.graph import io
from gpusq_onnx.graph.rewrites.canonical import spelled_out
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.ort import Session
from tests.graph.small_graphs import FLOAT, node, normal, proto

ASSETS = Path(__file__).parents[1] / "assets"
NO_DATA = DataOptions()


@pytest.fixture
def einsums(tmp_path: Path) -> Path:
    """The embedded model with every fc1 as an Einsum."""
    model = onnx.load_model(str(ASSETS / "digits_vit.onnx"))
    wanted = {
        id(r.name): r.name
        for s in analyse(io.load(ASSETS / "digits_vit.onnx")).sites
        for r in s.readers
        if s.role == "fc1"
    }
    for old in [n for n in model.graph.node if n.name in wanted.values()]:
        assert old.op_type == "MatMul"
        old.op_type = "Einsum"
        old.attribute.append(helper.make_attribute("equation", "abc,cd->abd"))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, str(path))
    return path


@pytest.fixture
def attention(tmp_path: Path) -> Path:
    """One fused attention and a Linear."""
    made = proto(
        [
            node("Reshape", ["x", "tokens"], ["t"]),
            node("MatMul", ["t", "w"], ["h"]),
            node("Attention", ["h", "h", "h"], ["a"], q_num_heads=2, kv_num_heads=2),
            node("MatMul", ["a", "v"], ["y"]),
        ],
        [("x", FLOAT, ["batch", 3, 8, 8])],
        [("y", FLOAT, ["batch", 6, 32])],
        {"tokens": np.array([0, 6, 32]), "w": normal(32, 32), "v": normal(32, 32, seed=1)},
        23,
    )
    path = tmp_path / "attention.onnx"
    onnx.save_model(made, str(path))
    return path


@pytest.fixture(scope="module", params=["digits_vit.onnx", "digits_vit_legacy17.onnx"])
def optimised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded model as onnxruntime saves it, with operators of its own, the original beside it."""
    folder = tmp_path_factory.mktemp("optimised")
    (folder / "original.onnx").write_bytes((ASSETS / request.param).read_bytes())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(str(folder / "original.onnx"), options, providers=["CPUExecutionProvider"])
    assert _foreign(folder / "optimised.onnx")
    return folder / "optimised.onnx"


def _foreign(path: Path) -> list[str]:
    return [n.op_type for n in onnx.load(path).graph.node if n.domain == "com.microsoft"]


def _roles(path: Path) -> list[str]:
    return [site.role for site in analyse(io.load(path)).sites]


def test_a_pipeline_that_prunes_is_prepared(einsums: Path) -> None:
    output = einsums.with_name("out.onnx")
    planned = manager.plan(einsums, parse("prune24"), RunOptions(NO_DATA))
    outcome = manager.run(einsums, output, parse("prune24"), RunOptions(NO_DATA))
    assert planned.pipeline == outcome.pipeline == "canonical{attention=false},prune24"
    assert [step.rows for step in planned.steps] == [step.rows for step in outcome.steps]
    assert _roles(output) == _roles(ASSETS / "digits_vit.onnx")
    assert [row.decision for row in outcome.steps[0].rows] == ["rewrite"] * 3


def test_a_pipeline_that_permutes_first_is_prepared_before_that(einsums: Path) -> None:
    planned = manager.plan(einsums, parse("permute,prune24"), RunOptions(NO_DATA))
    assert planned.pipeline == "canonical{attention=false},permute,prune24"
    moved = [row.tensor for row in planned.steps[1].rows if not row.skipped]
    assert len(moved) == len(_moved_of_the_plain_model())


def _moved_of_the_plain_model() -> list[str]:
    plain = manager.plan(ASSETS / "digits_vit.onnx", parse("permute,prune24"), RunOptions(NO_DATA))
    return [row.tensor for row in plain.steps[0].rows if not row.skipped]


def test_the_rewritten_model_computes_the_same(einsums: Path) -> None:
    output = einsums.with_name("out.onnx")
    manager.run(einsums, output, parse("canonical"), RunOptions(NO_DATA))
    image = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    before, after = (Session(path).run({"pixel_values": image})["logits"] for path in (einsums, output))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_model_with_nothing_to_do_is_left_alone() -> None:
    for source in (ASSETS / "digits_vit.onnx", ASSETS / "digits_vit_legacy17.onnx"):
        assert manager.plan(source, parse("prune24,qdq-int8"), RunOptions(NO_DATA)).pipeline == "prune24,qdq-int8"


def test_it_can_be_left_out_and_placed_elsewhere(einsums: Path) -> None:
    plain = manager.plan(einsums, parse("prune24"), RunOptions(NO_DATA, canonical=False))
    assert plain.pipeline == "prune24"
    placed = manager.plan(einsums, parse("fp16,canonical,prune24"), RunOptions(NO_DATA))
    assert placed.pipeline == "fp16,canonical,prune24"
    assert (
        manager.plan(einsums, parse("fold,prune24"), RunOptions(NO_DATA)).pipeline
        == "fold,canonical{attention=false},prune24"
    )
    assert manager.plan(einsums, parse("fp16"), RunOptions(NO_DATA)).pipeline == "fp16", "nothing prunes or quantises"


def test_fused_attention_is_taken_apart_for_int8_only(attention: Path) -> None:
    assert manager.plan(attention, parse("prune24"), RunOptions(NO_DATA)).pipeline == "prune24"
    output = attention.with_name("out.onnx")
    outcome = manager.run(attention, output, parse("qdq-int8"), RunOptions(NO_DATA))
    assert outcome.pipeline == "canonical,qdq-int8"
    assert "Attention" not in {n.op_type for n in onnx.load_model(str(output)).graph.node}
    assert not analyse(io.load(output)).attentions[0].fused


def test_a_weight_that_is_no_longer_read_goes(einsums: Path) -> None:
    model = onnx.load_model(str(einsums))
    for einsum in [n for n in model.graph.node if n.op_type == "Einsum"]:
        stored = next(t for t in model.graph.initializer if t.name == einsum.input[1])
        stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(stored).T), stored.name))
        einsum.attribute[0].s = b"abc,dc->abd"
    onnx.save_model(model, str(einsums))
    output = einsums.with_name("out.onnx")
    manager.run(einsums, output, parse("canonical"), RunOptions(NO_DATA))
    assert output.stat().st_size < einsums.stat().st_size + 4096


@pytest.mark.long
def test_a_file_that_onnxruntime_optimised_is_quantised_like_the_original(optimised: Path) -> None:
    original, outputs = optimised.with_name("original.onnx"), {}
    data = DataOptions(path=ASSETS / "digits_train.npz", samples=16)
    image = np.load(ASSETS / "digits_test.npz")["pixel_values"][:32]
    for path in (original, optimised):
        written = path.with_name(f"int8_{path.name}")
        manager.run(path, written, parse("qdq-int8"), RunOptions(data))
        assert _foreign(written) == []
        outputs[path] = Session(written, exact_qdq=True).run({"pixel_values": image})["logits"]
    count = [
        [n.op_type for n in onnx.load(p.with_name(f"int8_{p.name}")).graph.node].count("QuantizeLinear")
        for p in outputs
    ]
    assert count[0] == count[1]
    np.testing.assert_allclose(outputs[optimised], outputs[original], atol=0.05 * np.abs(outputs[original]).max())


@pytest.mark.long
@pytest.mark.parametrize("passes", ["fp16", "prune24{method=magnitude}", "prune24{method=magnitude},fp16"])
def test_any_first_pass_of_such_a_file_is_prepared(passes: str, optimised: Path) -> None:
    written = optimised.with_name("out.onnx")
    outcome = manager.run(optimised, written, parse(passes), RunOptions(NO_DATA))
    assert outcome.pipeline == f"canonical{{attention=false}},{passes}"
    assert _foreign(written) == []


def test_such_a_file_stays_as_it_is_where_the_caller_says_so(optimised: Path) -> None:
    written = optimised.with_name("out.onnx")
    manager.run(optimised, written, parse("prune24{method=magnitude}"), RunOptions(NO_DATA, canonical=False))
    assert _foreign(written) == _foreign(optimised)


@pytest.mark.long
def test_training_on_a_pruned_copy_takes_such_a_file_as_teacher(optimised: Path) -> None:
    pruned, taught = optimised.with_name("pruned.onnx"), optimised.with_name("taught.onnx")
    manager.run(optimised, pruned, parse("prune24{method=magnitude}"), RunOptions(NO_DATA))
    data = DataOptions(path=ASSETS / "digits_train.npz", samples=16)
    outcome = manager.run(pruned, taught, parse(f"distill{{steps=2,teacher={optimised}}}"), RunOptions(data))
    assert outcome.steps[-1].decisions["train"] == 14


def test_what_reads_a_model_sees_no_operators_of_onnxruntime(optimised: Path) -> None:
    assert not [n for n in spelled_out(io.load(optimised)).graph.nodes if n.domain]
    plain = io.load(optimised.with_name("original.onnx"))
    before = [id(n) for n in plain.graph.nodes]
    assert [id(n) for n in spelled_out(plain).graph.nodes] == before


def test_a_norm_that_onnxruntime_put_into_onnxs_domain_is_prepared_too(tmp_path: Path) -> None:
    nodes = [node("SimplifiedLayerNormalization", ["x", "gamma"], ["n"], axis=-1), node("MatMul", ["n", "w"], ["y"])]
    weights = {"gamma": np.ones(64, np.float32), "w": normal(64, 64)}
    x, y = (("x", FLOAT, [2, 4, 64]), ("y", FLOAT, [2, 4, 64]))
    onnx.save(proto(nodes, [x], [y], weights, opset=17), tmp_path / "in.onnx")
    outcome = manager.run(tmp_path / "in.onnx", tmp_path / "out.onnx", parse("fp16"), RunOptions(NO_DATA))
    assert outcome.pipeline == "canonical{attention=false},fp16"
