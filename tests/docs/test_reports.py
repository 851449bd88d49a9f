"""docs/reports.md names the keys that reports have: those of the verbs' own JSON, written here."""

import json
from pathlib import Path

import pytest

from gpusq_onnx.cli import main
from tools.docs.reports import REPORTS, keys, meanings, page

ASSETS = Path(__file__).parents[1] / "assets"
MODEL, DATA = ASSETS / "digits_vit.onnx", ASSETS / "digits_test.npz"
FEW = ["--data", str(DATA), "--samples", "4"]
PRUNE = "prune24{method=magnitude}"


def written(capsys: pytest.CaptureFixture[str], *words: str | Path) -> set[str]:
    """The keys of what a command prints as JSON."""
    assert main([*map(str, words), "--json", "-"]) == 0
    return set(json.loads(capsys.readouterr().out))


def named(verb: str) -> set[str]:
    (row,) = (row for row in REPORTS if f"`{verb}`" in row.verbs.split(", "))
    return keys(row)


@pytest.mark.long
def test_the_keys_are_those_that_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.onnx"
    assert written(capsys, "apply", "-p", PRUNE, "-o", small, MODEL) == named("apply")
    assert written(capsys, "plan", "-p", PRUNE, MODEL) == named("plan")
    assert written(capsys, "check", *FEW, MODEL, small) == named("check")
    assert written(capsys, "inspect", small) == named("inspect")
    assert written(capsys, "pack", "-o", tmp_path / "small.gpusq", small) == named("pack")


@pytest.mark.long
def test_those_of_verbs_that_take_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    look = ["--forms", "int8", "--images", "2", "--exact", "0", "--no-cache"]
    sensitive = written(capsys, "plan", "--sensitivity", *FEW, *look, MODEL)
    assert sensitive == named("plan --sensitivity")
    tuned = ["tune", "--at-most", "90%", "--measurements", "1", "-o", tmp_path / "r.toml"]
    assert written(capsys, *tuned, *FEW, *look, MODEL) == named("tune")
    timed = ["bench", "--backend", "onnxruntime", "--batch", "1", "--rounds", "3"]
    assert written(capsys, *timed, MODEL) == named("bench")
    for library in ("torch", "jinja2", "matplotlib"):
        pytest.importorskip(library)
    drawn = ["cam", "--method", "gradcam", "-o", tmp_path / "maps.html"]
    assert written(capsys, *drawn, *FEW, MODEL) == named("cam")


def test_what_an_attribute_line_says_goes_on_and_is_inherited() -> None:
    class Base:
        """A base.

        Attributes:
            one, two: what goes on
                in a second line.
            three: short.

        More text: which is none of it.
        """

    class Below(Base):
        """One below.

        Attributes:
            three: another.
        """

    on = "what goes on in a second line."
    assert meanings(Below) == {"one": on, "two": on, "three": "another."}


def test_every_key_has_a_meaning() -> None:
    assert [line for line in page().splitlines() if line.startswith("| `") and line.endswith("| |")] == []
    assert [line for line in page().splitlines() if line.startswith("| `") and line.endswith("|  |")] == []
