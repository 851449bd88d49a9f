"""The proof: a written file loads and computes the same in everybody's session, or there is no file."""

from pathlib import Path
from typing import Any

import broken_onnxruntime
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import PassFailed, UnsupportedModelError
from gpusq_onnx.graph import io, tidy
from gpusq_onnx.passes.prune import Prune24
from gpusq_onnx.pipeline import manager, proof
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.report.outline import of_run
from gpusq_onnx.report.run import digest
from gpusq_onnx.runtime.trial import Trial, Trials

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit.onnx"
NO_DATA = DataOptions()
IMAGES = DataOptions(path=ASSETS / "digits_train.npz", samples=8)
OURS = 'b"pkg.gpusq_onnx.pipeline" in data'


def apply(source: Path, folder: Path, passes: str, data: DataOptions = NO_DATA, **more: Any) -> Outcome:
    return manager.run(source, folder / "out.onnx", parse(passes), RunOptions(data), **more)


@pytest.mark.parametrize("external", [False, True])
def test_what_is_written_was_run_in_both_sessions(external: bool, tmp_path: Path) -> None:
    source = MODEL
    if external:
        source = tmp_path / "external.onnx"
        onnx.save(onnx.load(MODEL), source, save_as_external_data=True, location="external.onnx.data", size_threshold=0)
    outcome = apply(source, tmp_path, "prune24")
    assert outcome.proof is not None
    assert (outcome.proof.default, outcome.proof.unoptimised, outcome.proof.note) == ("ran", "ran", None)
    (logits,) = outcome.proof.outputs
    assert (logits.output, logits.judged, logits.finite, logits.same_shape) == ("logits", True, True, True)
    assert logits.relative is not None
    assert logits.relative < 1e-4
    assert logits.cosine == pytest.approx(1)
    text = digest(outcome)
    assert "## Proof" in text
    assert "onnxruntime's defaults: ran; every node as written: ran" in text
    left = {path.name for path in tmp_path.iterdir()} - {"external.onnx", "external.onnx.data"}
    assert left == ({"out.onnx", "out.onnx.data"} if external else {"out.onnx"})


REFUSES = f"def load(data, optimised):\n    if optimised and {OURS}: raise RuntimeError('no such kernel')"
DIES = f"def load(data, optimised):\n    if optimised and {OURS}: die()"


def with_defaults(change: str) -> str:
    """Of each output `v` of the written file."""
    return f"def result(values, data, optimised):\n    return [{change} if optimised and {OURS} else v for v in values]"


DIFFERS, NAN, CUT = with_defaults("-v"), with_defaults("v * float('nan')"), with_defaults("v[:, :5]")
AXIS = f"def result(values, data, optimised):\n    return [v[None] if {OURS} else v for v in values]"


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "says", "passes"),
    [
        (REFUSES, "refuses to load it: no such kernel", "prune24"),
        (DIES, "crashes: it crashed with SIGSEGV while loading it", "prune24"),
        (DIFFERS, "output 'logits'", "prune24"),
        (DIFFERS, "output 'logits'", "prune24,qdq-int8"),
        (NAN, "NaN or infinity", "prune24"),
        (CUT, "another shape", "prune24"),
        (CUT, "another shape", "prune24,qdq-int8"),
        (AXIS, "expected: shape [1, 10]", "prune24"),
    ],
)
def test_a_file_that_fails_is_not_written(
    code: str, says: str, passes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, code)
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(PassFailed, match="the written model failed its proof") as caught:
        apply(MODEL, folder, passes, IMAGES)
    assert says in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["out.onnx.reproducer"]
    last = passes.rpartition(",")[2]
    assert f'name = "{last}"' in (folder / "out.onnx.reproducer" / "recipe.toml").read_text()


def test_a_model_that_came_in_unable_to_run_is_written_with_a_warning(tmp_path: Path) -> None:
    made = onnx.load(MODEL)
    made.graph.node.append(helper.make_node("Strange", ["logits"], ["odd"], domain="mine", name="odd"))
    made.graph.output.append(helper.make_tensor_value_info("odd", TensorProto.FLOAT, [None, 10]))
    made.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(made, tmp_path / "in.onnx")
    outcome = apply(tmp_path / "in.onnx", tmp_path, "prune24")
    assert (tmp_path / "out.onnx").is_file()
    assert outcome.proof is not None
    assert (outcome.proof.default, outcome.proof.outputs) == ("refused", ())
    assert any("nothing is proven" in warning and "mine" in warning for warning in outcome.warnings)
    assert "not proven: onnxruntime's defaults refused, as written refused" in of_run(outcome, (), 120)


def test_a_model_that_loads_and_does_not_run_is_not_written_as_one_that_does_not_load() -> None:
    came = [Trial("default", "failed", "query and key differ"), Trial("unoptimised", "failed", "query and key differ")]
    for outcome in ("refused", "died"):
        with pytest.raises(UnsupportedModelError, match="does not run it") as raised:
            proof._unproven([Trial(trial.way, outcome, "") for trial in came], came)
        assert raised.value.details["found"] == "query and key differ"
    assert "nothing is proven" in (proof._unproven(came, came).note or "")


def test_a_model_that_is_chaotic_itself_is_not_our_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def result(values, data, optimised):\n    return [v * (-1.0 if optimised else 1) for v in values]"
    broken_onnxruntime.install(monkeypatch, tmp_path, code)
    outcome = apply(MODEL, tmp_path, "prune24")
    assert any("the input model itself gives other outputs" in warning for warning in outcome.warnings)


FATAL = "def load(data, optimised):\n    if b'{}' in data: die()"


@pytest.mark.long
def test_a_model_that_ends_onnxruntime_is_an_error_that_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = onnx.load(MODEL).graph.node[40].name
    broken_onnxruntime.install(monkeypatch, tmp_path, FATAL.format(name))
    folder = tmp_path / "work"
    folder.mkdir()
    for passes in ("prune24{method=sparsegpt}", "qdq-int8"):
        with pytest.raises(UnsupportedModelError, match="onnxruntime crashes on the model") as caught:
            apply(MODEL, folder, passes, IMAGES)
        assert f"node {name!r}" in str(caught.value)
        assert "SIGSEGV" in str(caught.value)
        assert caught.value.exit_code == 3
        assert list(folder.iterdir()) == []


def test_a_layer_norm_without_its_bias_goes_all_the_way(tmp_path: Path) -> None:
    """LayerNormalization(x, scale, "") ends the process of onnxruntime 1.31."""
    made = onnx.load(MODEL)
    for node in made.graph.node:
        if node.op_type == "LayerNormalization":
            node.input[2] = ""
    onnx.save(made, tmp_path / "in.onnx")
    outcome = apply(tmp_path / "in.onnx", tmp_path, "prune24,qdq-int8", IMAGES)
    assert outcome.proof is not None
    assert outcome.proof.default == "ran"


@pytest.mark.parametrize("opset", [17, 18, 20, 21, 22, 23])
def test_a_static_model_quantised_loads_in_a_default_session(opset: int, tmp_path: Path) -> None:
    """From opset 21 on, onnxruntime 1.28 to 1.32 refuses its own rewrite of such graphs; ours are labelled 20."""
    source = tmp_path / "in.onnx"
    onnx.save(static_mlp(opset), source)
    feed = {"x": np.random.default_rng(1).standard_normal((2, 7, 64)).astype(np.float32)}
    batches = tmp_path / "x.npz"
    np.savez(batches, x=np.concatenate([feed["x"]] * 4))
    apply(source, tmp_path, "qdq-int8", DataOptions(path=batches))
    written = onnx.load(tmp_path / "out.onnx")
    assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", 20)]
    assert written.ir_version == 10
    onnx.checker.check_model(written, full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    (after,) = session.run(None, feed)
    before = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    assert np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before)
    assert sum(node.op_type == "DequantizeLinear" for node in written.graph.node) >= 4


def static_mlp(opset: int) -> onnx.ModelProto:
    """LayerNorm, Linear, ReLU, Linear and the residual Add, of static shape, twice."""
    rng = np.random.default_rng(0)
    nodes, constants, x = [], {}, "x"
    for i in range(2):
        shapes = {"g": (64,), "b": (64,), "w1": (64, 128), "b1": (128,), "w2": (128, 64), "b2": (64,)}
        constants |= {f"{k}.{i}": (rng.standard_normal(s) / 8).astype(np.float32) for k, s in shapes.items()}
        for op, inputs, output in (
            ("LayerNormalization", [x, f"g.{i}", f"b.{i}"], f"n.{i}"),
            ("MatMul", [f"n.{i}", f"w1.{i}"], f"m1.{i}"),
            ("Add", [f"m1.{i}", f"b1.{i}"], f"a1.{i}"),
            ("Relu", [f"a1.{i}"], f"r.{i}"),
            ("MatMul", [f"r.{i}", f"w2.{i}"], f"m2.{i}"),
            ("Add", [f"m2.{i}", f"b2.{i}"], f"a2.{i}"),
            ("Add", [x, f"a2.{i}"], f"y.{i}"),
        ):
            nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}"))
        x = f"y.{i}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 7, 64])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [2, 7, 64])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    ir = 8 if opset < 21 else 10
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def test_the_same_model_labelled_21_is_what_onnxruntime_refuses(tmp_path: Path) -> None:
    """Not a wish but the reason: when this fails, onnxruntime is mended and `graph.label` may rest."""
    onnx.save(static_mlp(21), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((4, 7, 64), np.float32))
    apply(tmp_path / "in.onnx", tmp_path, "qdq-int8", DataOptions(path=tmp_path / "x.npz"))
    newer = onnx.load(tmp_path / "out.onnx")
    newer.opset_import[0].version = 21
    with pytest.raises(Exception, match="y_zero_point"):
        onnxruntime.InferenceSession(newer.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("external", [False, True])
def test_the_proof_sees_the_bytes_that_get_the_name(
    external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seen = proof.prove, []

    def prove(written: Path, *rest: Any) -> Any:
        assert not (tmp_path / "out.onnx").exists()
        seen.append([path.read_bytes() for path in (written, io.data_beside(written))[: 1 + external]])
        return whole(written, *rest)

    monkeypatch.setattr(proof, "prove", prove)
    source = tmp_path / "in.onnx"
    model = io.load(MODEL)
    model.external = external
    io.save(model, source)
    apply(source, tmp_path, "prune24")
    output = tmp_path / "out.onnx"
    assert seen == [[path.read_bytes() for path in (output, io.data_beside(output))[: 1 + external]]]


@pytest.mark.long
@pytest.mark.parametrize(
    "passes", ["prune24", "qdq-int8", "qdq-int8{weights=int8}", "int4-weights", "prune24,qdq-int8,fp16"]
)
def test_weights_are_mapped_where_they_lie_in_the_written_file(
    passes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any type, and wherever in the file: it aligns nothing."""
    whole, mapped = Trials.try_out, list[Path]()

    def try_out(self: Trials, path: Path, *rest: Any, **more: Any) -> list[Trial]:
        if path.suffix == ".mapped":
            mapped.append(path)
            assert more["size"] == path.with_suffix("").stat().st_size > 2 * path.stat().st_size
        else:
            assert path.name != "out.onnx"
        return whole(self, path, *rest, **more)

    monkeypatch.setattr(io, "_WORTH_MAPPING", 1000)
    monkeypatch.setattr(Trials, "try_out", try_out)
    outcome = apply(MODEL, tmp_path, passes, IMAGES)
    assert mapped
    assert outcome.proof is not None
    assert (outcome.proof.default, outcome.proof.unoptimised) == ("ran", "ran")
    assert {path.name for path in tmp_path.iterdir()} == {"out.onnx"}


@pytest.mark.long
def test_what_does_not_run_mapped_is_judged_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"def load(data, optimised):\n    if optimised and b'location' in data and {OURS}: die()"
    monkeypatch.setattr(io, "_WORTH_MAPPING", 1000)
    broken_onnxruntime.install(monkeypatch, tmp_path, code)
    assert apply(MODEL, tmp_path, "prune24").proof is not None


def with_an_attribute(alpha: float) -> onnx.ModelProto:
    """The embedded model, and on its logits a call of a local function of opset 12, without the attribute's default."""
    made = onnx.load(MODEL)
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    opset = next(entry.version for entry in made.opset_import if entry.domain == "")
    made.functions.append(
        helper.make_function(
            "local", "Mine", ["a"], ["b"], [leaky], [helper.make_opsetid("", opset)],
            attribute_protos=[helper.make_attribute("alpha", alpha)],
        )
    )  # fmt: skip
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.graph.node.append(helper.make_node("Mine", ["logits"], ["called"], domain="local"))
    made.graph.output[0].name = "called"
    return made


def test_a_model_that_is_read_as_another_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where reading makes other nodes, the file itself says what they must compute."""
    source = tmp_path / "in.onnx"
    onnx.save(with_an_attribute(0.9), source)
    assert apply(source, tmp_path, "prune24").proof is not None
    monkeypatch.setattr(tidy, "_spell_defaults", lambda model: None)
    with pytest.raises(PassFailed, match="does not compute what its file does") as caught:
        apply(source, tmp_path, "prune24")
    assert "output 'called'" in str(caught.value)


@pytest.mark.long
def test_an_exact_pass_is_held_to_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert apply(MODEL, tmp_path, "permute,prune24").proof is not None
    monkeypatch.setattr(Prune24, "exact", True)
    for passes in ("permute,prune24", "prune24,qdq-int8"):
        with pytest.raises(PassFailed, match="the model is not what it was"):
            apply(MODEL, tmp_path, passes)
