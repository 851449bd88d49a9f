"""The loop on the digits model: it learns, keeps its zeros, survives NaN, and can be watched."""

import json
from pathlib import Path
from typing import Any

import classroom
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.data.arrays import ArrayFile  # noqa: E402
from gpusq_onnx.data.opening import open_source  # noqa: E402
from gpusq_onnx.data.options import DataOptions  # noqa: E402
from gpusq_onnx.data.source import InputSpec  # noqa: E402
from gpusq_onnx.errors import InvariantError, PassFailed, UnsupportedDataError, UnsupportedModelError  # noqa: E402
from gpusq_onnx.graph import io  # noqa: E402
from gpusq_onnx.learn import loop  # noqa: E402
from gpusq_onnx.learn.guard import Guard  # noqa: E402
from gpusq_onnx.learn.masks import Masks  # noqa: E402
from gpusq_onnx.learn.objectives import Losses, Objective  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402
from gpusq_onnx.learn.teaching import Teaching  # noqa: E402
from gpusq_onnx.progress import NullProgress  # noqa: E402


@pytest.mark.parametrize(
    "options",
    [
        {"blockwise": 0.5, "features": "blocks"},
        *(pytest.param(options, marks=pytest.mark.long) for options in ({}, {"average": 0.9})),
    ],
    ids=str,
)
def test_the_student_comes_closer_and_its_zeros_stay(options: dict[str, Any]) -> None:
    taught, history = classroom.run(steps=24, **options)
    assert history.after.soft < 0.7 * history.before.soft
    model = classroom.pruned()
    learned = classroom.weights(taught)
    for name, mask in classroom.kept(model).items():
        assert not learned[name][~mask].any(), name
        assert np.count_nonzero(learned[name]) == mask.sum(), "kept weights stay alive"
    assert (history.masks, history.checks) == (12, 24 // 4 + 1), "every epoch of 4 steps, and the end"
    assert [row["step"] for row in history.curve] == list(range(1, 25))
    assert [row.get("phase") for row in history.curve] == (
        [1] * 12 + [2] * 12 if "blockwise" in options else [None] * 24
    )
    assert {"loss", "hard", "soft", "feature.0", "agree", "norm", "lr"} <= history.curve[0].keys()


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (0.0844, []),
        (0.084432, []),  # the same four digits: no difference that a reader could see
        (0.0854, ["(0.08443 -> 0.0854)"]),
    ],
)
def test_a_student_that_moved_away_is_said_where_the_numbers_show_it(after: float, says: list[str]) -> None:
    notes = loop._further(0.084431, after)
    assert len(notes) == len(says) and all(one in note for one, note in zip(says, notes, strict=True))


@pytest.mark.long
def test_a_broken_mask_is_caught_and_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masks, "apply", lambda self: None)
    monkeypatch.setattr(Masks, "clear_gradients", lambda self: None)
    with pytest.raises(InvariantError, match="away from zero") as caught:
        classroom.run()
    assert caught.value.exit_code == 4


@pytest.mark.long
def test_one_guard_alone_keeps_the_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masks, "clear_gradients", lambda self: None)
    assert classroom.run()[1].checks == 2


def _poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Make the loss NaN in training steps of these numbers."""
    call, count = Objective.__call__, iter(range(10**6))

    def poisoned(self: Objective, *rest: Any, **named: Any) -> Losses:
        losses = call(self, *rest, **named)
        if not losses.total.requires_grad or next(count) not in steps:
            return losses
        return Losses(losses.total * float("nan"), {**losses.parts, "loss": losses.total.detach() * float("nan")})

    monkeypatch.setattr(Objective, "__call__", poisoned)


@pytest.mark.long
def test_a_loss_that_is_not_a_number_once_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, range(2, 3))
    taught, history = classroom.run()
    assert any("not a number at step 3" in note for note in history.notes)
    assert [row["step"] for row in history.curve] == [1, 2, 4, 5, 6]
    assert history.curve[2]["lr"] < history.curve[1]["lr"] / 1.5, "half the rate, and the cosine"
    assert all(np.isfinite(value).all() for value in classroom.weights(taught).values())


@pytest.mark.long
def test_a_loss_that_stays_no_number_fails_and_leaves_the_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    _poison(monkeypatch, range(1, 100))
    with pytest.raises(PassFailed, match="not a number") as caught:
        classroom.run(folder=tmp_path / "run")
    assert caught.value.exit_code == 4 and "best.safetensors" in str(caught.value)
    best = load_file(tmp_path / "run" / "best.safetensors")
    assert best and all(np.isfinite(value).all() for value in best.values())


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"flip": True}], ids=["remembered", "asked in every step"])
def test_a_teacher_that_gives_no_numbers_is_the_models_fault(options: dict[str, Any]) -> None:
    settings, model = TrainingOptions(**classroom.TOY, **options), classroom.pruned()
    setup = classroom.setup(model, settings)
    next(buffer for buffer in setup.teacher.buffers() if buffer.ndim == 2).fill_(3e38)
    with pytest.raises(UnsupportedModelError, match="of the model as it was holds NaN or infinity"):
        loop.train(setup, classroom.data(), settings, kept=classroom.kept(model))


@pytest.mark.long
def test_a_rising_loss_stops_at_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Guard.judge
    monkeypatch.setattr(Guard, "judge", lambda self, loss, norm, step: judge(self, max(1.0, step - 5), norm, step))
    monkeypatch.setattr(loop, "ROUNDS", 1000)
    taught, history = classroom.run(steps=40)
    stopped = next(note for note in history.notes if "training stopped" in note)
    assert "step 8, the weights of step 6 are kept" in stopped, "steps 4 to 8: (1 + 1 + 1 + 2 + 3) / 5 > 1.5"
    assert len(history.curve) == 8
    monkeypatch.undo()
    six = {**classroom.TOY, "steps": 40}
    kept = _stopped_at(6, six)
    for name, value in classroom.weights(taught).items():
        assert value.tobytes() == kept[name].tobytes(), name


def _stopped_at(step: int, options: dict[str, Any]) -> dict[str, Any]:
    """The weights after so many steps of a longer run."""
    seen: dict[str, Any] = {}
    taught = classroom.setup(model := classroom.pruned(), settings := TrainingOptions(**options))

    class Peek(NullProgress):
        rounds = 0

        def note(self, text: str) -> None:
            Peek.rounds += 1
            if Peek.rounds == step:
                seen.update(classroom.weights(taught))

    loop.train(taught, classroom.data(), settings, kept=classroom.kept(model), progress=Peek())
    return seen


@pytest.mark.long
def test_logs_hold_every_round_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _, history = classroom.run(folder=folder)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == [row["loss"] for row in history.curve]
    assert all(row["images_per_second"] > 0 for row in rows)


@pytest.mark.long
def test_parts_of_a_batch_add_up_to_it() -> None:
    whole, parts = classroom.run(gate=False), classroom.run(gate=False, accumulate=4)
    classroom.assert_close(classroom.weights(parts[0]), classroom.weights(whole[0]))


@pytest.mark.long
def test_remembered_answers_are_the_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"crop": 1, "flip": False}
    taught, history = classroom.run(**plain)
    assert history.remembered and not classroom.run(flip=True)[1].remembered
    monkeypatch.setattr(Teaching, "remember", lambda *rest: False)
    looked, _ = classroom.run(**plain)
    classroom.assert_close(classroom.weights(taught), classroom.weights(looked))


@pytest.mark.long
def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    one, two, other = (classroom.weights(classroom.run(steps=3, seed=seed)[0]) for seed in (1, 1, 2))
    assert all((one[name] == two[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


@pytest.fixture
def one_label_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The digits, with 99 for the last one's label."""
    with np.load(classroom.ASSETS / "digits_train.npz") as found:
        arrays = {name: found[name][:32] for name in found.files}
    arrays["labels"][-1] = 99
    path = tmp_path / "digits.npz"
    np.savez(path, **arrays)
    inputs = [InputSpec(s.name, s.dtype, s.shape) for s in io.load(classroom.MODEL).inputs()]
    monkeypatch.setattr(classroom, "data", lambda samples: open_source(DataOptions(path=path), inputs))
    return path


def test_labels_that_the_model_does_not_know_are_refused_before_the_work(
    one_label_too_large: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loop, "compare", lambda *rest: pytest.fail("work was done"))
    with pytest.raises(UnsupportedDataError, match="no class of the model"):
        classroom.run(folder=tmp_path / "out.onnx.training" / "1-distill")
    assert list(tmp_path.iterdir()) == [one_label_too_large]


@pytest.mark.parametrize("options", [{"alpha": 0}, pytest.param({"labels": False}, marks=pytest.mark.long)])
def test_labels_that_nothing_is_learned_from_are_not_asked(one_label_too_large: Path, options: dict[str, Any]) -> None:
    assert classroom.run(steps=4, **options)[1].steps == 4


@pytest.mark.parametrize(
    ("changed", "options", "goes_on"),
    [
        ("", {}, True),
        ("images", {}, False),
        pytest.param("labels", {}, False, marks=pytest.mark.long),
        pytest.param("labels", {"alpha": 0}, True, marks=pytest.mark.long),
    ],
)
def test_a_checkpoint_is_of_the_same_images_and_labels(
    changed: str, options: dict[str, Any], goes_on: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if changed == "labels":
        monkeypatch.setattr(ArrayFile, "digest", lambda self: "as of a folder, whose labels lie elsewhere")
    classroom.run(steps=2, folder=tmp_path, interval=0, **options)
    with np.load(classroom.ASSETS / "digits_train.npz") as found:
        arrays = {name: found[name] for name in found.files}
    for name, array in arrays.items():
        if changed == ("labels" if name == "labels" else "images"):
            arrays[name] = np.roll(array, 1, axis=0)
    path = tmp_path / "others.npz"
    np.savez(path, **arrays)
    inputs = [InputSpec(s.name, s.dtype, s.shape) for s in io.load(classroom.MODEL).inputs()]
    monkeypatch.setattr(classroom, "data", lambda samples: open_source(DataOptions(path=path, samples=samples), inputs))
    _, history = classroom.run(steps=2, folder=tmp_path, **options)
    assert any("of another run" in note for note in history.notes) != goes_on
