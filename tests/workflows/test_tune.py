"""Sensitivity and tuning of the digits model: what is chosen is measured, and the recipe gives what was measured."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import gpusq_onnx
from gpusq_onnx import errors
from gpusq_onnx.pipeline import manager
from gpusq_onnx.progress import NullProgress
from gpusq_onnx.runtime.ort import Infer, Session
from gpusq_onnx.tuning import replay
from gpusq_onnx.tuning.groups import Groups, find_groups
from gpusq_onnx.tuning.reasons import layers
from gpusq_onnx.tuning.report import Tuning
from gpusq_onnx.tuning.subject import Subject
from gpusq_onnx.tuning.treatments import TREATMENTS, offered
from gpusq_onnx.tuning.variants import Variants

ASSETS = Path(__file__).parents[1] / "assets"
MODEL, TRAIN = ASSETS / "digits_vit.onnx", ASSETS / "digits_train.npz"
FEW = {"samples": 48, "calibrate": 16}
LOOK = {"images": 8, "exact": 0, "forms": ["int8", "2:4 int8"]}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.of(MODEL, gpusq_onnx.DataOptions(path=TRAIN, samples=8))


class Notes(NullProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, notes: Notes) -> tuple[Tuning, Path]:
    """The digits at no more than 13 % of their operations, and the recipe."""
    recipe = tmp_path_factory.mktemp("tuned") / "recipe.toml"
    more = {"measurements": 1, "progress": notes, **LOOK}
    found = gpusq_onnx.tune(MODEL, data=TRAIN, data_options=FEW, at_most="13%", output=recipe, **more)
    return found, recipe


@pytest.mark.usefixtures("tuned")
def test_what_a_measurement_does_is_noted_by_pass_and_stage(notes: Notes):
    assert "qdq-int8: calibrating" in notes.texts
    assert not [text for text in notes.texts if "step " in text]


def test_groups_are_what_reads_one_tensor_and_each_attention_core(subject: Subject):
    groups = find_groups(subject.model, subject.structure, offered(None))
    names = [group.name for group in groups.groups]
    assert names[:5] == [f"block 0 {role}" for role in ("qkv", "attention", "proj", "fc1", "fc2")]
    assert sorted(other.group.name for other in groups.outside) == ["head.weight", "patch_embed.weight"]
    fc1 = groups.groups[3].operations
    assert fc1["2:4"] == fc1["dense"] / 2 and fc1["int8"] == fc1["dense"] / 16 and fc1["2:4 int8"] == fc1["int8"] / 2
    total = sum(group.operations["dense"] for group in groups.groups)
    total += sum(other.group.operations["dense"] for other in groups.outside)
    assert total == pytest.approx(groups.total)


def test_what_no_form_changes_has_a_row_with_its_reason(subject: Subject):
    groups = find_groups(subject.model, subject.structure, offered(None, ["dense", "2:4"]))
    losses = {group.name: dict.fromkeys(group.operations, 0.0) for group in groups.groups}
    rows = layers(groups, losses, dict.fromkeys(losses, "dense"))
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [row.reason for row in rows if row.name == "block 0 attention"] == [
        "no weights to prune, and no form on offer quantises its operands"
    ]


def test_attention_is_eight_bits_where_only_four_are_offered(subject: Subject):
    groups = find_groups(subject.model, subject.structure, offered(None, ["w4a8"]))
    (group, *_) = (group for group in groups.groups if group.attention is not None)
    made = Variants(subject.model, groups, subject.source, 0).of(group, TREATMENTS["int8"])
    assert [node.op for node in made.graph.nodes].count("QuantizeLinear") == 4  # q, k, v and the softmax output


def test_data_in_memory_is_there_until_the_report_is_made():
    images = np.random.default_rng(0).random((6, 3, 32, 32), np.float32)
    look = {"images": 4, "exact": 1, "forms": ["int8"]}
    assert gpusq_onnx.sensitivity(MODEL, data=images, **look).data["samples"] == 6  # type: ignore[arg-type]
    tuned = gpusq_onnx.tune(MODEL, data=images, at_most="90%", measurements=1, **look)  # type: ignore[arg-type]
    assert tuned.sensitivity.data["samples"] == 6


@pytest.mark.long
def test_what_is_measured_and_what_is_estimated(tmp_path: Path):
    options = {"data": TRAIN, "data_options": {"samples": 16}, "images": 8, "forms": ["int8"], "cache": tmp_path}
    found = gpusq_onnx.sensitivity(MODEL, exact=8, **options)
    measured = [loss for loss in found.found.losses if loss.exact is not None]
    assert len(measured) == 8 < len(found.found.losses) == 15
    assert {loss.group.split()[-1] for loss in measured} == {"qkv", "attention", "proj", "fc1", "fc2"}
    assert all(loss.value >= 0 and np.isfinite(loss.value) for loss in found.found.losses)
    assert found.found.rank_correlation is not None and "rank correlation" in str(found)
    assert json.loads(json.dumps(found.report))["sensitivity"]["images"] == 4


@pytest.mark.long
def test_the_cache_answers_the_same_question_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"data": TRAIN, "data_options": {"samples": 8}, "images": 8, "forms": ["int8"], "exact": 0}
    first = gpusq_onnx.sensitivity(MODEL, cache=tmp_path, **options)
    monkeypatch.setattr("gpusq_onnx.workflows.sensitivity.measure", lambda *asked: pytest.fail("measured again"))
    assert gpusq_onnx.sensitivity(MODEL, cache=tmp_path, **options).found == first.found
    with pytest.raises(pytest.fail.Exception):
        gpusq_onnx.sensitivity(MODEL, cache=tmp_path, **{**options, "data_options": {"samples": 7}})


@pytest.mark.long
def test_the_choice_costs_what_was_asked_and_no_uniform_one_is_better(tuned: tuple[Tuning, Path]):
    found, _ = tuned
    assert found.chosen is not None and found.chosen.share <= 0.13
    cheap = [point for point in found.points if point.share <= 0.13]
    assert "uniform 2:4 int8" in {point.name for point in found.points}
    assert min(point.values["kl"] for point in cheap) == found.chosen.values["kl"]
    assert [layer.name for layer in found.layers[-2:]] == ["patch_embed.weight", "head.weight"]
    assert all(layer.reason for layer in found.layers)
    assert "uniform int8" in str(found) and json.dumps(found.report)
    assert (found.calibrated, found.measured) == (16, 32)


@pytest.mark.long
def test_the_recipe_gives_the_model_that_was_measured(tuned: tuple[Tuning, Path], tmp_path: Path):
    found, recipe = tuned
    assert found.chosen is not None and recipe.read_text() == found.recipe
    made = gpusq_onnx.compress(MODEL, recipe, data=TRAIN, data_options=FEW, output=tmp_path / "tuned.onnx")
    assert made.pipeline == found.pipeline
    pixels = np.load(TRAIN)["pixel_values"]
    chosen = [index * len(pixels) // 48 for index in range(48)]
    held = [index for place, index in enumerate(chosen) if place % 3]
    compared = made.check(data={"pixel_values": pixels[held]}).comparison
    assert compared.top1_agreement == found.chosen.values["agreement"]
    groups = found.sensitivity.groups
    cores = sum(g.operations[found.chosen.choice[g.name]] for g in groups.groups if g.attention is not None)
    total = made.report["after"]["total"]["bit_operations"] + cores
    assert total / groups.total == pytest.approx(found.chosen.share)


@pytest.mark.long
def test_the_recipe_trains_what_was_trained_without_what_was_held_out(tmp_path: Path):
    pytest.importorskip("torch")
    data = {"samples": 48, "calibrate": 16, "hold_out": 12}
    options = {"data": TRAIN, "data_options": data, "measurements": 1, "finetune_steps": 2, "rounds": 1, **LOOK}
    found = gpusq_onnx.tune(MODEL, at_most="13%", output=tmp_path / "recipe.toml", **options)
    (point,) = [point for point in found.points if point.trained]
    assert point.share <= 0.13 and found.recovery is not None and str(found.recovery) in str(found)
    held_out = found.sensitivity.data["options"]["hold_out"]
    assert (found.calibrated, found.measured, held_out) == (16, 12, 12)
    choice, groups = point.choice, found.sensitivity.groups
    bench_of_point = gpusq_onnx.compress(MODEL, trained(choice, groups), data=TRAIN, data_options=data)
    compared = bench_of_point.check(data=TRAIN, data_options={"samples": 48, "hold_out": 12}).comparison
    assert compared.samples == 12 and compared.top1_agreement == point.values["agreement"]
    assert "--hold-out 12" in str(found) and json.dumps(found.report)


def trained(choice: Mapping[str, str], groups: Groups) -> str:
    from gpusq_onnx.pipeline.finetune import TrainingLength, insert
    from gpusq_onnx.tuning.configuration import pipeline_of

    own = Subject.of(MODEL, gpusq_onnx.DataOptions(path=TRAIN, samples=8))
    return str(insert(pipeline_of(own, groups, choice), TrainingLength("steps", 2)))


@pytest.mark.long
def test_a_search_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"data": TRAIN, "data_options": FEW, "cache": tmp_path, "measurements": 1, **LOOK}
    made, runs = manager.run, list[object]()

    def counted(*asked: object, **named: object) -> object:
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(asked)
        return made(*asked, **named)

    monkeypatch.setattr("gpusq_onnx.tuning.measurer.manager.run", counted)
    with pytest.raises(KeyboardInterrupt):
        gpusq_onnx.tune(MODEL, budget="kl<=0.0005", **options)
    monkeypatch.setattr("gpusq_onnx.tuning.measurer.manager.run", made)
    first = gpusq_onnx.tune(MODEL, budget="kl<=0.0005", **options)
    monkeypatch.setattr("gpusq_onnx.tuning.measurer.manager.run", lambda *a, **k: pytest.fail("measured again"))
    again = gpusq_onnx.tune(MODEL, budget="kl<=0.0005", **options)
    assert again.report == first.report and again.points == first.points
    with pytest.raises(pytest.fail.Exception):
        gpusq_onnx.tune(MODEL, budget="kl<=0.0005", **{**options, "data_options": {**FEW, "calibrate": 15}})


@pytest.mark.long
def test_a_size_is_kept_by_the_file_that_the_recipe_makes(tmp_path: Path):
    options = {"data": TRAIN, "data_options": FEW, "measurements": 3, **LOOK}
    found = gpusq_onnx.tune(MODEL, packed_size="30%", output=tmp_path / "recipe.toml", **options)
    assert found.chosen is not None and found.chosen.packed is not None and found.chosen.packed <= 0.3
    assert {found.chosen.choice[g.name] for g in found.sensitivity.groups.groups if g.attention is not None} == {
        "dense"
    }
    made = gpusq_onnx.compress(
        MODEL, tmp_path / "recipe.toml", data=TRAIN, data_options=FEW, output=tmp_path / "m.onnx"
    )
    before, after = (made.report[side]["total"]["packed_bytes"] for side in ("before", "after"))
    assert after / before == found.chosen.packed
    assert "30.0000% of the dense packed bytes: met" in str(found) and "of the bytes" in str(found)


@pytest.mark.parametrize("room", [2, 0])
def test_the_dense_model_runs_once_where_there_is_room_for_its_outputs(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    feeds = [{"pixel_values": rows} for rows in np.split(np.load(TRAIN)["pixel_values"][:8], 4)]
    session, runs = Session(MODEL, exact_qdq=True), []
    batch = sum(values.nbytes for values in session.run(feeds[0]).values())
    monkeypatch.setattr(replay, "MOST", room * batch)
    opened = session.opened

    @contextmanager
    def counted() -> Iterator[Infer]:
        with opened() as infer:
            yield lambda feed: (runs.append(feed), infer(feed))[1]

    monkeypatch.setattr(session, "opened", counted)
    dense = replay.Replay(session, tmp_path)
    for _ in range(2):
        with dense.opened() as infer:
            for feed in feeds:
                np.testing.assert_array_equal(infer(feed)["logits"], session.run(feed)["logits"])
    assert len(runs) == 4 + (4 - room)


def test_four_bits_and_eight_in_one_recipe(subject: Subject):
    from gpusq_onnx.tuning.configuration import pipeline_of

    groups = find_groups(subject.model, subject.structure, offered("ampere"))
    choice = {group.name: "int8" for group in groups.groups}
    choice |= {"block 0 fc1": "2:4 w4a8", "block 1 fc2": "dense", "block 2 attention": "dense"}
    prune, quantise = pipeline_of(subject, groups, choice).steps
    assert (prune.name, quantise.name) == ("prune24", "qdq-int4")
    assert len(prune.options["skip"]) == 11 and len(quantise.options["eight"]) == 10  # type: ignore[arg-type]
    assert quantise.options["skip"] == ["val_140"] and quantise.options["skip_attention"] == [2]
    planned = gpusq_onnx.plan(MODEL, str(pipeline_of(subject, groups, choice)), data=TRAIN)
    formats = {row.tensor: row.detail.format for row in planned.rows if row.decision == "quantise weight"}
    assert formats["val_74"] != formats["val_13"] and "val_140" not in formats


@pytest.mark.long
def test_a_budget_that_is_missed_writes_nothing(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    found = gpusq_onnx.tune(
        MODEL, data=TRAIN, data_options=FEW, budget="kl<=1e-12", output=recipe, measurements=1, **LOOK
    )
    assert found.chosen is None and not recipe.exists() and "NOT MET" in str(found)
    with pytest.raises(errors.GateFailed, match="no configuration meets"):
        found.require()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"budget": "agrement>=0.9"}, "did you mean 'agreement'"),
        ({"budget": "agreement>=97"}, "0 to 1"),
        ({"budget": "agreement<=0.9"}, "written with >="),
        ({"budget": "kl<=nine"}, "cannot be read"),
        ({"budget": "ap-drop<=1"}, "annotations FILE"),
        ({"at_most": "140%"}, "out of range"),
        ({"at_most": "0.4"}, "such as 40%"),
        ({"at_most": "100%"}, "the dense model is within the limit"),
        ({"packed_size": "1GB"}, "the dense model is within the limit"),
        ({"at_most": 0.4}, "such as 40%"),
        ({"at_most": "40%", "images": 0}, "images"),
        ({"at_most": "40%", "forms": "int9"}, "no form 'int9'"),
        ({}, "one of budget, at_most and packed_size"),
        ({"at_most": "40%", "budget": "kl<=1"}, "kl<=1 and 40%"),
        ({"packed_size": "8 apples"}, "such as 8MB"),
        ({"packed_size": "0MB"}, r"the size is out of range(.|\n)*a size above 0"),
        ({"at_most": "40%", "forms": ["int9"]}, "no form 'int9'"),
        ({"at_most": "40%", "forms": ["2:4"], "target": "cpu"}, "on cpu"),
        ({"at_most": "40%", "data_options": {"samples": 4, "calibrate": 4}}, "no samples are left"),
        ({"at_most": "40%", "data_options": {"samples": 1}}, "one sample cannot both"),
        ({"at_most": "40%", "finetune": 1, "finetune_steps": 1}, "both say how long"),
        ({"at_most": "40%", "finetune": 0}, "epochs"),
        ({"at_most": "40%", "data_options": {"samples": 4, "hold_out": 4}}, "left to work with"),
        ({"at_most": "40%", "data": None, "data_options": None}, "there is none"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, object], said: str):
    with pytest.raises(errors.UsageError, match=said):
        gpusq_onnx.tune(MODEL, **{"data": TRAIN, "data_options": FEW, **asked})  # type: ignore[arg-type]


@pytest.mark.long
def test_a_size_that_nothing_has_is_missed_with_what_could_be_had():
    found = gpusq_onnx.tune(MODEL, packed_size="1KB", data=TRAIN, data_options=FEW, measurements=1, **LOOK)
    with pytest.raises(errors.GateFailed) as caught:
        found.require()
    assert caught.value.details["next"] == "a looser budget"
    assert re.search(r"of the dense packed bytes: \d+,\d+$", found.failure)
