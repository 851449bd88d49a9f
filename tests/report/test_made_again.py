"""The command that makes a result again, read by the command line as it reads one that is typed: nothing is lost."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpusq_onnx
from gpusq_onnx.cli import main
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.remembered import settle
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline.outcome import FileFacts, Outcome
from gpusq_onnx.report import outline
from gpusq_onnx.report.checking import CheckResult
from gpusq_onnx.report.page import cards, commands
from gpusq_onnx.report.tuning import (
    Goal,
    Look,
    ModelFile,
    Sensitivity,
    SensitivityDocument,
    TuningDocument,
)
from gpusq_onnx.runtime.compare.gates import Gates
from gpusq_onnx.runtime.compare.outputs import Comparison

MODEL = Path(__file__).parents[1] / "assets" / "digits_vit.onnx"
EVERYTHING: list[dict[str, Any]] = [
    {"path": "some images/", "samples": 7, "calibrate": 5, "hold_out": 2, "crop_ratio": 0.8, "crop": 30, "seed": 3},
    {"path": "images", "resize": 40, "mean": [0.48145466, 0.5, 0.25], "std": [0.5], "classes": "classes.txt"},
    {"path": "images", "annotations": "boxes.json", "fit": "stretch", "layout": "NHWC", "channels": "BGR"},
    {"masks": "maps", "reduce_zero_label": True, "interpolation": "nearest", "max_pixels": 1000, "path": "i"},
    {"preset": "vit"},
    {"preset": "deit", "crop_ratio": 0.95, "mean": 0.5},
    {"preset": "clip", "resize": 256},
    {"mean": "0.485,0.456,0.406", "fit": "crop", "max_pixels": 89_478_485},  # the defaults, but given
    {},
]


SCORING = ("annotations", "masks", "reduce_zero_label")  # which verbs that do not score do not take


class Stop(UsageError):
    """What ends a command once its options are known."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """What the workflow of the verb gets, and goes no further with."""
    found: dict[str, Any] = {}

    def stop(*models: Any, **named: Any) -> None:
        found.update(named, models=models)
        raise Stop("enough")

    for where in ("apply.compress", "plan.plan", "check.check", "tune.tune", "sensitivity.sensitivity"):
        monkeypatch.setattr(f"gpusq_onnx.workflows.{where}", stop)
    return found


@pytest.fixture(scope="module")
def planned() -> Outcome:
    return gpusq_onnx.plan(MODEL, "prune24{method=magnitude}").outcome


def test_every_option_of_the_data_is_tried() -> None:
    assert {key for values in EVERYTHING for key in values} == set(DataOptions.model_fields)


def parsed(command: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the command line makes of it."""
    words = shlex.split(command)
    assert words[0] == "gpusq-onnx" and main([*words[1:], "-q"]) == 2
    assert given, "the options were not understood"
    return given


def reported(values: Mapping[str, Any]) -> tuple[DataOptions, dict[str, Any]]:
    """Data options, and what a report says of them, of a model that remembers something else."""
    options = DataOptions.from_values(values)
    config = '{"fit": "stretch", "mean": [0.1], "std": [0.2], "channels": "RGB", "interpolation": "bilinear"}'
    source = open_source(DataOptions.from_values({}), [InputSpec("x", np.dtype(np.float32), (1, 3, 8, 8))])
    return options, settle(options, [{"pkg.gpusq_onnx.preprocess": config}], None).describe(source)


def same(one: DataOptions, other: DataOptions) -> bool:
    return one == other and {key for key in one.model_fields_set if getattr(one, key) is not None} == {
        key for key in other.model_fields_set if getattr(other, key) is not None
    }


@pytest.mark.parametrize("values", EVERYTHING, ids=lambda values: "-".join(values))
@pytest.mark.parametrize("verb", ["apply", "check", "tune", "sensitivity"])
def test_the_data_options_come_back(
    verb: str, values: dict[str, Any], planned: Outcome, given: Mapping[str, Any], tmp_path: Path
) -> None:
    options, data = reported(values)
    if verb in ("apply", "sensitivity"):
        options = DataOptions.from_values({key: value for key, value in values.items() if key not in SCORING})
    if verb == "apply":
        written = FileFacts(str(tmp_path / "a b.onnx"), 1, "")
        command = commands.of_run(replace(planned, data=data, output=written, seed=options.seed))
    elif verb == "check":
        options = DataOptions.from_values({key: value for key, value in values.items() if key != "calibrate"})
        command = commands.of_check(checked(data))
    else:
        command = commands.of_sensitivity(look_at(data, tuned=verb == "tune", recipe=str(tmp_path / "r.toml")))
    assert same(parsed(command, given)["data"], options), command


def test_what_was_held_out_is_what_is_compared_next(planned: Outcome, given: Mapping[str, Any]) -> None:
    options, data = reported({"path": "images", "samples": 9, "calibrate": 5, "hold_out": 2, "seed": 4})
    written = replace(planned, data=data, output=FileFacts("small.onnx", 1, ""))
    shown = outline.of_run(written, [], 200)
    assert "2 held out" in "\n".join(shown) and shown[-2] == "next, on what was held out:"
    found = parsed(shown[-1].strip(), given)
    assert same(found["data"], options.model_copy(update={"calibrate": None}))
    assert found["models"] == (MODEL, Path("small.onnx"))


@pytest.mark.parametrize("values", EVERYTHING, ids=lambda values: "-".join(values))
def test_the_next_command_of_a_plan_has_them_too(
    values: dict[str, Any], planned: Outcome, given: Mapping[str, Any]
) -> None:
    options = DataOptions.from_values({key: value for key, value in values.items() if key not in SCORING})
    lines = outline.of_plan(replace(planned, target="orin", canonical=False, allow_noop=True), [], 80, options)
    found = parsed(
        lines[-1].strip().replace(" --data images/", "" if options.path is None else " --data images/"), given
    )
    assert same(found["data"], options)
    assert (found["target"], found["canonical"], found["allow_noop"]) == ("orin", False, True)


def test_how_a_pipeline_was_run_comes_back(planned: Outcome, given: Mapping[str, Any]) -> None:
    command = commands.of_run(replace(planned, target="orin", canonical=False, allow_noop=True, seed=4))
    found = parsed(command, given)
    assert (found["target"], found["canonical"], found["allow_noop"], found["data"].seed) == ("orin", False, True, 4)
    assert str(found["models"][1]) == planned.pipeline
    found = parsed(commands.of_run(planned), given)
    assert (found["target"], found["canonical"], found["allow_noop"]) == (None, True, False)


def test_a_run_says_how_it_was_asked_for() -> None:
    found = gpusq_onnx.plan(MODEL, "prune24{method=magnitude}", target="ampere", canonical=False, allow_noop=True)
    assert (found.report["target"], found.report["canonical"], found.report["allow_noop"]) == ("ampere", False, True)


def checked(data: dict[str, Any]) -> CheckResult:
    gates = Gates(min_cosine=0.99999999, max_top1_drop=1)
    comparison = Comparison.__new__(Comparison)
    return CheckResult(
        original=str(MODEL),
        compressed=str(MODEL),
        runtime="cuda",
        comparison=comparison,
        data=data,
        gates=gates,
        failures=(),
        tolerance=0.25,
        taps=("blocks", "x"),
    )


def test_gates_and_taps_come_back(given: Mapping[str, Any]) -> None:
    result = checked(reported({})[1])
    found = parsed(commands.of_check(result), given)
    assert found["gates"] == result.gates
    assert (found["look"].on, found["look"].taps, found["look"].tolerance) == ("cuda", ("blocks", "x"), 0.25)


def look_at(data: dict[str, Any], *, tuned: bool, recipe: str | None) -> SensitivityDocument:
    sensitivity = Sensitivity("KL", 8, (), None)
    head = "gpusq-onnx 0", ModelFile(str(MODEL), ""), 1.0, (), sensitivity, ()
    look = Look("hopper", ("int8", "2:4 int8"), 9, 0)
    if not tuned:
        return SensitivityDocument(*head, data=data, look=look)
    goal = Goal("kl<=0.01", None, 3, recipe)
    return TuningDocument(*head, "kl<=0.01", True, "", None, "", (), (), 1, 1, data=data, look=look, goal=goal)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_look_at_the_layers_comes_back(tuned: bool, given: Mapping[str, Any], tmp_path: Path) -> None:
    document = look_at(reported({"samples": 3})[1], tuned=tuned, recipe=str(tmp_path / "r.toml"))
    found = parsed(commands.of_sensitivity(document), given)
    assert (found["target"], found["forms"], found["images"], found["exact"]) == ("hopper", ["int8", "2:4 int8"], 9, 0)
    if tuned:
        assert (found["budget"], found["at_most"], found["measurements"]) == ("kl<=0.01", None, 3)
        assert found["output"] == tmp_path / "r.toml"


def test_an_analysis_and_a_share_come_back(given: Mapping[str, Any]) -> None:
    document = look_at(reported({})[1], tuned=True, recipe=None)
    assert isinstance(document, TuningDocument)
    found = parsed(commands.of_sensitivity(replace(document, goal=Goal(None, "40%", 8, None))), given)
    assert (found["budget"], found["at_most"], found["output"]) == (None, "40%", None)
    sized = replace(document, goal=Goal(None, None, 8, None, packed_size="8MB"))
    assert parsed(commands.of_sensitivity(sized), given)["packed_size"] == "8MB"
    trained = replace(document, goal=Goal(None, "40%", 8, None, finetune_steps=5, rounds=2))
    found = parsed(commands.of_sensitivity(trained), given)
    assert (found["finetune_steps"], found["rounds"], found.get("finetune")) == (5, 2, None)


def test_the_page_of_a_look_has_its_command_and_that_of_an_earlier_build_none() -> None:
    document = look_at(reported({})[1], tuned=False, recipe=None)
    shown = [block.text for block in cards.summary([document]).blocks if block.kind == "command"]
    assert shown == [commands.of_sensitivity(document)]
    assert commands.of_sensitivity(replace(document, look=None)) == ""
