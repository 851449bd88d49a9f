"""What every pass in the table promises, whoever wrote it: a new row is tested by being there."""

import json
import shutil
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.pipeline import manager, table
from gpusq_onnx.pipeline.grammar import Pipeline, Step, parse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit_legacy17.onnx"  # has something for every pass, constants to fold included
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=8)
PASSES = list(table.BUILTIN)
TRAIN = ("distill", "qat")
CARRIED_OUT = [pytest.param(name, marks=[pytest.mark.long] * (name in TRAIN)) for name in PASSES]
# Values for options whose type does not say what is valid.
EXAMPLES: Mapping[tuple[str, str], Any] = {
    **{(name, "pattern"): "2:8" for name in ("permute", "prune", "prune24", "prune48pair", "prune-nm")},
    ("qdq", "scheme"): "w4a8",
    **{(name, key): "teacher.onnx" for name in TRAIN for key in ("teacher", "dense")},
    **{(name, "steps"): 3 for name in ("distill", "qat")},
    **{(name, key): value for name in TRAIN for key, value in (("accumulate", 2), ("batch", 12))},
    **{(name, key): 0.25 for name in TRAIN for key in ("mixed", "tokens")},
}
# What has happened to the model before a pass that needs it, and with which options the pass then runs.
BEFORE: Mapping[str, str] = {"distill": "prune24{method=magnitude}", "qat": "qdq-int8"}
OPTIONS_THEN: Mapping[str, Mapping[str, Any]] = {
    "distill": {"steps": 2, "batch": 8, "teacher": str(MODEL)},
    "qat": {"steps": 2, "batch": 8},
}


def _other_values(name: str) -> dict[str, Any]:
    """For each option of a pass a valid value that is not its default."""
    found: dict[str, Any] = {}
    for key, field in table.rows()[name].load().Options.model_fields.items():
        kind = field.annotation
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        if (name, key) in EXAMPLES:
            found[key] = EXAMPLES[name, key]
        elif kind is bool:
            found[key] = not field.default
        elif get_origin(kind) is Literal:
            found[key] = next(choice for choice in get_args(kind) if choice != field.default)
        elif get_origin(kind) is list:
            found[key] = [1] if get_args(kind) == (int,) else ["fc1", "blocks.0.*"]
        else:
            assert kind in (int, float), f"give an example of {name}.{key} in EXAMPLES"
            found[key] = kind(field.default * 0.75 + 0.125)
    return found


def _pipeline(name: str) -> Pipeline:
    """The pass alone, as it runs on what `source` gives it."""
    return Pipeline((Step(name, dict(OPTIONS_THEN.get(name, {}))),))


OPTIONS = [(name, key) for name in PASSES for key in _other_values(name)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with metadata of its own at every level."""
    model = onnx.load_model(str(MODEL))
    model.metadata_props.add(key="classes", value="0,1,2,3,4,5,6,7,8,9")
    model.graph.doc_string = "kept"
    for index, node in enumerate(model.graph.node):
        node.metadata_props.add(key="number", value=str(index))
    path = tmp_path_factory.mktemp("contract") / "model.onnx"
    onnx.save_model(model, str(path))
    return path


def _with_einsums(source: Path) -> Path:
    """The model with its constant products as Einsums, for the pass that rewrites them."""
    model = onnx.load_model(str(source))
    stored = {t.name: len(t.dims) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and stored.get(node.input[1]) == 2:
            node.op_type = "Einsum"
            node.attribute.append(helper.make_attribute("equation", "abc,cd->abd"))
    path = source.with_name("einsums.onnx")
    onnx.save_model(model, str(path))
    return path


@pytest.fixture(scope="module")
def sources(source: Path) -> dict[str, Path]:
    """What each pass is given: that model, treated first where the pass needs it."""
    found = dict.fromkeys(PASSES, source)
    found["canonical"] = _with_einsums(source)
    for name, text in BEFORE.items():
        found[name] = source.with_name(f"before-{name}.onnx")
        manager.run(source, found[name], parse(text), RunOptions(DATA))
    return found


@pytest.fixture(scope="module")
def applied(sources: Mapping[str, Path]) -> dict[str, tuple[Outcome, Path]]:
    """Each pass run once, on first use."""

    class Runs(dict[str, tuple[Outcome, Path]]):
        def __missing__(self, name: str) -> tuple[Outcome, Path]:
            output = sources[name].with_name(f"{name}.onnx")
            self[name] = manager.run(sources[name], output, _pipeline(name), RunOptions(DATA)), output
            return self[name]

    return Runs()


def _weights(path: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_model(str(path)).graph.initializer}


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_every_option_goes_through_the_grammar_and_back(name: str, key: str) -> None:
    value = _other_values(name)[key]
    pipeline = Pipeline((Step(name, {key: value}),))
    assert parse(str(pipeline)) == pipeline
    (made,) = table.resolve(parse(str(pipeline)))
    assert made.options.model_dump(mode="json")[key] == value
    assert getattr(made.options, key) != type(made).Options.model_fields[key].default


@pytest.mark.parametrize("name", PASSES)
def test_all_options_at_once(name: str) -> None:
    values = _other_values(name)
    (made,) = table.resolve(parse(str(Pipeline((Step(name, values),)))))
    assert made.options.model_dump(mode="json") == values


@pytest.mark.parametrize("name", PASSES)
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no option 'nonesuch'"):
        table.resolve(parse(f"{name}{{nonesuch=1}}"))


@pytest.mark.parametrize("name", PASSES)
def test_interface_and_metadata_are_kept(name: str, sources: Mapping[str, Path], applied: Mapping[str, Any]) -> None:
    before, after = onnx.load_model(str(sources[name])), onnx.load_model(str(applied[name][1]))
    onnx.checker.check_model(after, full_check=True)
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert after.graph.doc_string == "kept"
    metadata = {entry.key: entry.value for entry in after.metadata_props}
    assert metadata["classes"] == "0,1,2,3,4,5,6,7,8,9"
    assert json.loads(metadata["pkg.gpusq_onnx.history"])[-1]["pipeline"] == str(_pipeline(name))
    numbers = {node.name: node.metadata_props for node in before.graph.node}
    kept = [node for node in after.graph.node if node.name in numbers]
    assert len(kept) > min(len(before.graph.node), len(after.graph.node)) / 2
    assert all(node.metadata_props == numbers[node.name] for node in kept)


@pytest.mark.long
@pytest.mark.parametrize("name", CARRIED_OUT)
def test_the_same_bytes_twice(
    name: str, sources: Mapping[str, Path], applied: Mapping[str, Any], tmp_path: Path
) -> None:
    again = tmp_path / "again.onnx"
    manager.run(sources[name], again, _pipeline(name), RunOptions(DATA))
    assert again.read_bytes() == applied[name][1].read_bytes()


@pytest.mark.parametrize("name", CARRIED_OUT)
def test_a_plan_is_what_apply_does(name: str, sources: Mapping[str, Path], applied: Mapping[str, Any]) -> None:
    (outcome, output), source = applied[name], sources[name]
    planned = manager.plan(source, _pipeline(name), RunOptions(DATA))
    (step,), (done,) = planned.steps, outcome.steps
    assert step.rows == done.rows
    assert step.facts == done.facts
    assert all(row.reason for row in step.rows)
    assert any(not row.skipped for row in step.rows)
    before, after = _weights(source), _weights(output)
    for row in step.rows:
        if row.skipped and row.tensor in before:
            np.testing.assert_array_equal(after[row.tensor], before[row.tensor])
    assert source.read_bytes() != output.read_bytes()


@pytest.mark.parametrize("name", [name for name in PASSES if table.rows()[name].load().kind != "finetune"])
def test_a_second_time_it_refuses_and_leaves_nothing(name: str, applied: Mapping[str, Any], tmp_path: Path) -> None:
    treated = tmp_path / "treated.onnx"
    shutil.copy(applied[name][1], treated)
    with pytest.raises(UnsupportedModelError) as caught:
        manager.run(treated, tmp_path / "twice.onnx", parse(name), RunOptions(DATA))
    assert caught.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["treated.onnx"]


@pytest.mark.parametrize("name", PASSES)
def test_planning_changes_nothing(name: str, sources: Mapping[str, Path]) -> None:
    source = sources[name]
    before = source.read_bytes()
    manager.plan(source, _pipeline(name), RunOptions(DATA))
    assert source.read_bytes() == before
