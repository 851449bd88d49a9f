"""Several models in one command: each whole or not at all, a line each, the worst exit code."""

from pathlib import Path

import pytest
from command_line import MODEL, call
from desk import names

pytestmark = pytest.mark.long

PASSES = ["-p", "prune24{method=magnitude}"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two models, and one that is none between them."""
    for name in ("a", "c"):
        (tmp_path / f"{name}.onnx").write_bytes(MODEL.read_bytes())
    (tmp_path / "b.onnx").write_bytes(b"no model")
    return tmp_path


@pytest.mark.parametrize("quoted", [False, True])
def test_all_are_done_whatever_becomes_of_one(models: Path, quoted: bool) -> None:
    given = [models / "*.onnx"] if quoted else sorted(models.glob("*.onnx"))
    outcome = call("apply", *PASSES, *given, "-o", f"{models / 'out'}/")
    assert outcome.code == 3
    assert names(models / "out") == ["a.onnx", "c.onnx"]
    assert names(models) == ["a.onnx", "b.onnx", "c.onnx", "out"]
    rows = outcome.out.splitlines()[1:]
    expected = [("a.onnx", "0"), ("b.onnx", "3"), ("c.onnx", "0")]
    assert [tuple(row.split()[:2]) for row in rows] == [(str(models / name), code) for name, code in expected]
    assert "model 2 of 3: " in outcome.err and "unsupported model: " in outcome.err


def test_the_same_bytes_as_alone_and_beside_each_model_without_a_folder(models: Path) -> None:
    both = [models / "a.onnx", models / "c.onnx"]
    assert call("apply", *PASSES, *both, "-q").out == ""
    assert call("apply", *PASSES, both[0], "-o", models / "alone.onnx").code == 0
    assert (models / "a.gpusq.onnx").read_bytes() == (models / "alone.onnx").read_bytes()
    assert (models / "c.gpusq.onnx").exists()
    packed = call("pack", models / "a.gpusq.onnx", models / "c.gpusq.onnx", "-o", f"{models / 'packed'}/")
    assert packed.code == 0 and names(models / "packed") == ["a.gpusq.gpusq", "c.gpusq.gpusq"]


def test_a_folder_is_a_place_for_one_model_too(models: Path) -> None:
    assert call("apply", *PASSES, models / "a.onnx", "-o", f"{models / 'new'}/").code == 0
    assert names(models / "new") == ["a.onnx"]
    assert call("apply", *PASSES, models / "a.onnx", "-o", models).code == 0
    assert (models / "a.gpusq.onnx").exists() and (models / "a.onnx").read_bytes() == MODEL.read_bytes()


def test_looking_verbs_say_a_line_each(models: Path) -> None:
    both = [models / "a.onnx", models / "c.onnx"]
    for words in (["inspect"], ["plan", *PASSES], ["apply", "--dry-run", *PASSES]):
        outcome = call(*words, *both)
        assert (outcome.code, len(outcome.out.splitlines())) == (0, 3), outcome.err


def test_check_takes_several_against_one_original(models: Path) -> None:
    assert call("apply", *PASSES, models / "a.onnx", "-o", models / "small.onnx").code == 0
    data = ["--samples", "8", "--min-agreement", "0.99"]
    outcome = call("check", *data, models / "a.onnx", models / "c.onnx", models / "small.onnx")
    assert outcome.code == 1
    good, bad = outcome.out.splitlines()[1:]
    assert " 0 " in good and "agreement 100.00%" in good
    assert " 1 " in bad and "gate failed" in bad


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["apply", *PASSES, "a.onnx", "c.onnx", "-o", "one.onnx"], "name a folder"),
        (["apply", *PASSES, "a.onnx", "c.onnx", "-o", "-"], "stdout"),
        (["apply", *PASSES, "a.onnx", "sub/a.onnx", "-o", "out/"], "the same name"),
        (["apply", *PASSES, "a.onnx", "c.onnx", "--report", "r.json"], "about one model"),
        (["inspect", "a.onnx", "c.onnx", "--json", "-"], "about one model"),
        (["inspect", "none*.onnx"], "no file has such a name"),
        (["check", "a.onnx", "a.onnx", "c.onnx", "--artefacts", "kept"], "about one model"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_before_the_work(
    models: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models / "sub").mkdir()
    (models / "sub" / "a.onnx").write_bytes(MODEL.read_bytes())
    before = names(models)
    monkeypatch.chdir(models)
    outcome = call(*words)
    assert (outcome.code, outcome.out) == (2, "") and says in outcome.err
    assert names(models) == before
