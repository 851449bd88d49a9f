"""What the documents take from elsewhere is what is there: generated files, numbers, messages, citations, versions."""

import re
import signal
from pathlib import Path

import pytest
import yaml
from pages import README, ROOT, anchor, anchors, prose

import gpusq_onnx
from gpusq_onnx import errors
from gpusq_onnx.cli.interrupts import SIGNALS
from tests.packaging.arrows import FLOORS
from tools.docs import curves, house, pipeline
from tools.docs.__main__ import GENERATED

DOCS = ROOT / "docs"
CODE = [path for folder in ("gpusq_onnx", "passes", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]


def benchmarks() -> str:
    return (DOCS / "benchmarks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_file_is_current(name: str):
    assert (ROOT / name).read_text(encoding="utf-8") == GENERATED[name](), "run `python -m tools.docs`"


def test_an_arrow_with_a_longer_way_is_not_drawn():
    assert house.reduced({("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}) == [("a", "b"), ("a", "d"), ("b", "c")]


@pytest.mark.long
def test_the_picture_has_every_area_and_arrows_that_go_down():
    text = house.drawing()
    assert [
        name for name in FLOORS if name != "__main__" and f">{name}</text>" not in text and name not in house.FILES
    ] == []
    assert all(FLOORS[a] >= FLOORS[b] for a, b in house.found_edges())
    assert "for all: errors" in text


@pytest.mark.parametrize("value", [step[3] for step in pipeline.STEPS])
def test_the_pictures_numbers_are_measured_ones(value: float):
    for page in (README, DOCS / "benchmarks.md"):
        assert re.search(rf"\| {value:.1f} %", page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("column", [0, 1])
def test_the_curves_points_are_measured_ones(column: int):
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) % \| [\d.]+ % \| ([\d.]+) % \|", benchmarks(), re.MULTILINE)
    trained, shot = (dict(points) for _, _, points in curves.CURVES)
    assert {int(images): float(found[column]) for images, *found in rows} == (shot, trained)[column]


def test_every_row_of_the_readmes_table_is_among_the_benchmarks():
    rows = re.findall(r"^\| ([^|]*) \| ([\d.]+ %) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 10
    assert [row for row in rows if row[1] not in benchmarks()] == []


def test_the_exit_codes_are_those_of_the_errors():
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GpusqError)]
    signals = {128 + getattr(signal, name) for name in SIGNALS}
    assert listed == {kind.exit_code for kind in classes} | {0} | signals


def test_every_message_that_troubleshooting_quotes_is_one_of_the_code():
    messages = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    text = "\n".join(path.read_text(encoding="utf-8") for path in CODE)
    assert len(messages) > 20
    for message in messages:
        parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
        assert re.search(r'["\'][^"\n]*' + r"[^\n]*".join(parts), text), message


def citations(path: Path) -> list[tuple[str, str]]:
    """(page, heading in quotes or "") of each `docs/PAGE.md` that a source file cites."""
    text = re.sub(r"\n\s*#?\s*", " ", path.read_text(encoding="utf-8"))
    return re.findall(r"(?<![/\w])docs/([\w-]+\.md)(?:,? \"([^\"]+)\")?", text)


def test_the_headings_that_the_code_cites_exist():
    cited = [(path, page, heading) for path in CODE for page, heading in citations(path)]
    assert len(cited) > 20
    wrong = []
    for path, page, heading in cited:
        if not (DOCS / page).exists():
            wrong.append(f"{path.name}: {page}")
        elif heading and anchor(heading) not in anchors(DOCS / page):
            wrong.append(f"{path.name}: {page} {heading!r}")
    assert wrong == []


def test_no_source_cites_a_document_that_is_not_here():
    old = re.compile(r"\b((METHOD|TENSORRT|TORCHGRAPH|DESIGN)\b(?=\.md|[,:;. )]| facts?| \")|FORMATS\.md)")
    lines = [f"{path.name}: {line}" for path in CODE for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if old.search(line)] == []


def test_the_version_is_one_everywhere():
    assert f"version: {gpusq_onnx.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {gpusq_onnx.__version__}\n" in (DOCS / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licence_is_that_of_the_metadata():
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'license = "Apache-2.0"\nlicense-files = ["LICENSE"]\n' in metadata
    assert "Apache License\n" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_files_for_other_tools_can_be_read():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks if not hook["entry"].startswith(".venv/bin/")] == []


def test_the_glossary_is_in_order():
    words = re.findall(r"^- \*\*(.*?)\*\*: ", prose(DOCS / "glossary.md"), re.MULTILINE)
    assert len(words) > 20
    assert words == sorted(words, key=str.lower)
