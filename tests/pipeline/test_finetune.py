"""`--finetune` puts learning passes where they belong; learners see their teachers; failures are reproducible."""

from pathlib import Path

import numpy as np
import pytest
import toy_learners

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import PassFailed, UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import finetune, manager, recipe, table
from gpusq_onnx.pipeline.finetune import TrainingLength
from gpusq_onnx.pipeline.grammar import Step, parse
from gpusq_onnx.pipeline.run import RunOptions

pytestmark = pytest.mark.long

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit.onnx"
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=4)
PRUNE, QUANTISE = "prune24{method=magnitude}", "qdq-int8{only=[fc1]}"  # the quickest ones


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_learners.install(monkeypatch)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("prune24,qdq-int8", "prune24,distill{epochs=3},qdq-int8,qat{epochs=3}"),
        ("fold,prune24", "fold,prune24,distill{epochs=3}"),
        ("qdq-int8", "qdq-int8,qat{epochs=3}"),
        ("prune24{only=fc1},fold,prune24{only=fc2}", "prune24{only=fc1},fold,prune24{only=fc2},distill{epochs=3}"),
        ("int8-accurate", "qdq-int8{profile=accurate},qat{epochs=3}"),
    ],
)
def test_learning_passes_stand_behind_the_last_of_their_kind(text: str, becomes: str) -> None:
    found = finetune.insert(table.expand(parse(text)), TrainingLength("epochs", 3))
    assert str(found) == becomes
    assert parse(str(found)) == found
    assert recipe.loads(recipe.dumps(found)) == found


def test_steps_are_an_option_of_their_own() -> None:
    assert str(finetune.insert(parse("prune24"), TrainingLength("steps", 50))) == "prune24,distill{steps=50}"


@pytest.mark.parametrize(
    ("text", "says"), [("fold", "nothing to fine-tune"), ("prune24,distill", "a learning pass already: 'distill'")]
)
def test_what_cannot_be_fine_tuned(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        finetune.insert(parse(text), TrainingLength("epochs", 3))


def _weights(model: Model) -> float:
    return float(sum(np.abs(site.read()).sum(dtype=np.float64) for site in analyse(model).sites))


def test_each_learner_is_given_its_teacher(tmp_path: Path) -> None:
    manager.run(MODEL, tmp_path / "distilled.onnx", parse(f"{PRUNE},distill"), RunOptions(DATA))
    found = manager.run(MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill,{QUANTISE},qat"), RunOptions(DATA))
    planned = manager.plan(MODEL, parse(f"{PRUNE},distill,{QUANTISE},qat"), RunOptions(DATA))
    assert [step.name for step in planned.steps] == [step.name for step in found.steps]
    _, distill, _, qat = found.steps
    assert distill.findings["folder"] == str(tmp_path / "out.onnx.training" / "2-distill")
    assert qat.findings["folder"] == str(tmp_path / "out.onnx.training" / "4-qat")
    assert distill.findings["teacher_zeros"] < 0.01
    assert distill.findings["teacher_sum"] == pytest.approx(_weights(io.load(MODEL)))
    assert qat.findings["teacher_zeros"] > 0.3
    assert qat.findings["teacher_sum"] == pytest.approx(_weights(io.load(tmp_path / "distilled.onnx")))


def test_no_model_is_kept_where_nobody_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Model, "clone")
    manager.run(MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},{QUANTISE}"), RunOptions(DATA))
    assert (tmp_path / "out.onnx").exists()


def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    found = manager.run(MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill"), RunOptions(DATA), leader=False)
    assert found.output is None
    assert (tmp_path / "out.onnx.training" / "2-distill" / "checkpoint.bin").exists()
    with pytest.raises(ArithmeticError):
        manager.run(
            MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill{{fail=true}}"), RunOptions(DATA), leader=False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx.training"]


def test_checkpoints_stay_until_the_output_is_there_and_logs_for_good(tmp_path: Path) -> None:
    files = tmp_path / "out.onnx.training" / "2-distill"
    with pytest.raises(PassFailed):
        manager.run(
            MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill,{QUANTISE},qat{{fail=true}}"), RunOptions(DATA)
        )
    assert sorted(path.name for path in files.iterdir()) == ["checkpoint.bin", "log.jsonl"]
    found = manager.run(MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill"), RunOptions(DATA))
    assert [path.name for path in files.iterdir()] == ["log.jsonl"]
    assert "distill: it was only a toy" in found.warnings


def test_training_sees_all_images_and_calibration_as_many_as_it_is_told(tmp_path: Path) -> None:
    data = DataOptions(path=ASSETS / "digits_train.npz", samples=12, calibrate=5)
    found = manager.run(MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill,{QUANTISE}"), RunOptions(data))
    assert found.steps[1].findings["images"] == 12
    assert found.steps[2].findings["images"] == 5
    assert found.data is not None
    assert found.data["samples"] == 12


def test_what_is_held_out_nothing_sees(tmp_path: Path) -> None:
    data = DataOptions(path=ASSETS / "digits_train.npz", samples=12, calibrate=5, hold_out=3)
    found = manager.run(MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill,{QUANTISE}"), RunOptions(data))
    assert [found.steps[1].findings["images"], found.steps[2].findings["images"]] == [9, 5]
    assert found.data is not None and found.data["samples"] == 9
    with pytest.raises(UsageError, match="no samples are left to work with") as error:
        manager.run(MODEL, tmp_path / "o.onnx", parse(QUANTISE), RunOptions(data.model_copy(update={"hold_out": 12})))
    assert error.value.details["where"] == "--hold-out"


def test_learning_needs_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'distill' learns from images"):
        manager.run(MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill"), RunOptions(DataOptions()))
    assert not list(tmp_path.iterdir())
    assert manager.plan(MODEL, parse(f"{PRUNE},distill"), RunOptions(DataOptions())).pipeline == f"{PRUNE},distill"


def test_a_learner_that_fails_takes_its_teacher_along(tmp_path: Path) -> None:
    text = f"{PRUNE},distill{{epochs=2,fail=true}},{QUANTISE},qat"
    with pytest.raises(PassFailed, match="the loss is NaN"):
        manager.run(MODEL, tmp_path / "out.onnx", parse(text), RunOptions(DATA))
    folder = tmp_path / "out.onnx.reproducer"
    names = ["before-prune.onnx", "data.toml", "error.txt", "model.onnx", "recipe.toml"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert _weights(io.load(folder / "before-prune.onnx")) == pytest.approx(_weights(io.load(MODEL)))
    again = recipe.load(folder / "recipe.toml")
    first, *rest = again.steps
    dense = str(folder / "before-prune.onnx")
    assert first.options == {"epochs": 2, "fail": True, "teacher": dense}
    assert rest == [Step("qdq-int8", {"only": ["fc1"]}), Step("qat", {"dense": dense})]
    with pytest.raises(PassFailed, match="the loss is NaN"):
        manager.run(folder / "model.onnx", tmp_path / "again.onnx", again, RunOptions(DATA))


def test_training_is_not_repeated_for_a_reproducer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager.run(MODEL, tmp_path / "distilled.onnx", parse(f"{PRUNE},distill"), RunOptions(DATA))
    runs: list[str] = []
    learn = toy_learners.Learner.apply

    def counted(self: toy_learners.Learner, *rest: object) -> None:
        runs.append(self.name)
        learn(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(toy_learners.Learner, "apply", counted)
    with pytest.raises(PassFailed):
        manager.run(
            MODEL, tmp_path / "out.onnx", parse(f"{PRUNE},distill,{QUANTISE},qat{{fail=true}}"), RunOptions(DATA)
        )
    assert runs == ["distill", "qat"]
    folder = tmp_path / "out.onnx.reproducer"
    assert sorted(recipe.load(folder / "recipe.toml").steps[0].options) == ["dense", "fail", "teacher"]
    assert _weights(io.load(folder / "before-prune.onnx")) == pytest.approx(_weights(io.load(MODEL)))
    teacher = io.load(folder / "before-quantise.onnx")
    assert _weights(teacher) == pytest.approx(_weights(io.load(tmp_path / "distilled.onnx")))
    with pytest.raises(PassFailed):
        manager.run(
            folder / "model.onnx", tmp_path / "again.onnx", recipe.load(folder / "recipe.toml"), RunOptions(DATA)
        )


def test_facts_that_do_not_hold_are_refused_and_leave_no_trace(tmp_path: Path) -> None:
    for text, says in (
        ('[{"fact": "sparse weight", "site": "nonesuch", "pattern": "2:4"}]', "does not hold"),
        ('[{"fact": "of another kind"}]', "cannot be read"),
        ("[1]", "cannot be read"),
    ):
        model = io.load(MODEL)
        model.set_metadata({"pkg.gpusq_onnx.facts": text})
        io.save(model, tmp_path / "model.onnx")
        with pytest.raises(Exception, match=says) as caught:
            manager.run(tmp_path / "model.onnx", tmp_path / "out.onnx", parse(PRUNE), RunOptions(DATA))
        assert getattr(caught.value, "exit_code", None) == 3
    model.set_metadata({"pkg.gpusq_onnx.facts": "[]"})
    io.save(model, tmp_path / "model.onnx")
    manager.run(tmp_path / "model.onnx", tmp_path / "out.onnx", parse(PRUNE), RunOptions(DATA))
    assert "pkg.gpusq_onnx.facts" not in io.load(tmp_path / "out.onnx").metadata
