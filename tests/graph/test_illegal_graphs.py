"""Small illegal graphs: our rules stop each one, and TensorRT's parser says what the corpus says it says."""

from pathlib import Path

import illegal_graphs
import onnx
import pytest
from illegal_corpus import CORPUS, Case
from small_graphs import model

from gpusq_onnx.errors import InvariantError, UnsupportedModelError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq import placement
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline.facts import ExplicitQuantisation
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.runtime.tensorrt.parser import parser_verdict

LEGAL = (illegal_graphs.legal, illegal_graphs.turned, illegal_graphs.in_fp16, illegal_graphs.int4_in_blocks_of_64)

UNREADABLE = (
    illegal_graphs.float_zero_point,
    illegal_graphs.zero_scale_of_one_channel,
    illegal_graphs.weight_scales_of_another_length,
    illegal_graphs.fp32_scale_of_an_fp16_activation,
    illegal_graphs.fp32_scale_of_an_fp16_graphs_weight,
)


def cases(*stops: str) -> pytest.MarkDecorator:
    chosen = [case for case in CORPUS if case.stops in (stops or ("load", "input", "output"))]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


@pytest.fixture
def file(case: Case, tmp_path: Path) -> Path:
    onnx.save(case.make(), str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


def broken(loaded: Model) -> str | None:
    return ExplicitQuantisation().broken(loaded, analyse(loaded))


@cases("load")
def test_what_cannot_be_read(case: Case, file: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=case.says):
        io.load(file)


@cases("input")
def test_what_is_refused_on_its_way_in_and_out(case: Case, file: Path) -> None:
    loaded = io.load(file)
    found = invariants.violations(loaded)
    assert any(case.says in text for text in found), found
    with pytest.raises(UnsupportedModelError):
        invariants.require(loaded)
    with pytest.raises(InvariantError):
        invariants.check(loaded, "a pass")


@cases("input")
def test_inspect_names_no_kernel_of_tensorrt_for_it(case: Case, file: Path) -> None:
    if case.make in UNREADABLE:
        with pytest.raises(UnsupportedModelError):
            inspect_model(io.load(file))
        return
    found = inspect_model(io.load(file))
    undocumented = case.make in (illegal_graphs.int4_in_blocks_of_20, illegal_graphs.int4_without_blocks)
    assert bool(found.undocumented if undocumented else found.illegal)
    assert not (undocumented and found.illegal)
    assert {weight.kernel.kind for weight in found.weights} <= {"dense" if undocumented else "onnxruntime only"}


@cases("output")
def test_what_may_come_in_and_is_never_written(case: Case, file: Path) -> None:
    loaded = io.load(file)
    invariants.require(loaded)
    found = broken(loaded)
    assert found is not None
    assert case.says in found


@pytest.mark.long
@pytest.mark.parametrize("make", LEGAL, ids=lambda make: make.__name__)
def test_what_they_are_made_from_is_legal(make, harness: Path, tmp_path: Path) -> None:
    onnx.save(make(), str(tmp_path / "model.onnx"))
    loaded = io.load(tmp_path / "model.onnx")
    assert (invariants.violations(loaded), broken(loaded)) == ([], None)
    assert parser_verdict(tmp_path / "model.onnx", harness=harness, build=True).built


@pytest.mark.slow
@cases()
def test_tensorrt_says_what_the_corpus_says(case: Case, file: Path, harness: Path) -> None:
    verdict = parser_verdict(file, harness=harness, build=True)
    assert verdict.built == bool(case.why), verdict.errors


def test_every_defect_is_in_the_corpus_once() -> None:
    names = [case.name for case in CORPUS]
    assert len(set(names)) == len(names)
    helpers = {"pair", "linear", "int4", *(make.__name__ for make in LEGAL)}
    made = {
        n for n, v in vars(illegal_graphs).items() if getattr(v, "__module__", "") == "illegal_graphs" and callable(v)
    }
    assert made - helpers == set(names)


def test_rules_are_listed_once() -> None:
    rules = [*invariants.STRUCTURE, *invariants.QUANTISATION, *placement.WRITTEN]
    assert len({rule.__name__ for rule in rules}) == len(rules)
    assert all(rule.__doc__ for rule in rules)


def test_a_weight_with_scales_along_the_reduction_runs_in_float() -> None:
    weight = inspect_model(model(illegal_graphs.weight_scales_along_the_reduction())).weights[0]
    assert str(weight.kernel) == "dense FP32" and not weight.eligible
    assert any("along the reduction" in obstacle.text for obstacle in weight.obstacles)
