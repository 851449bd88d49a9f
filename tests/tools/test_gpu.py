"""`make gpu`: resumable steps of which none can end the run, and a rehearsal of all of it on the CPU."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpusq_onnx.cli import main as gpusq
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.table import resolve
from tools.gpu import page, plan
from tools.gpu.__main__ import main
from tools.gpu.runner import Book, Step, carry_out

ROOT = Path(__file__).parents[2]
TICK = "import json, pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(json.dumps(p.exists()))"
MACHINE = {"gpu": "none"}


class Desk:
    """A folder and its book, opened anew for each call as a new process does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, list[str]()

    def call(self, *steps: Step, seconds: float = 60, times: Sequence[float] = ()) -> list[str]:
        """One call; `times`: what the clock says at its start and before each step."""
        folder, clock = self.folder / "logs", iter(times or [0] * 9)
        self.said.clear()
        return carry_out(
            steps,
            self.book,
            python=Path(sys.executable),
            folder=folder,
            seconds=seconds,
            say=self.said.append,
            clock=lambda: next(clock),
        )

    @property
    def book(self) -> Book:
        return Book(self.folder / "results.json", MACHINE)

    def step(self, name: str, code: str, *, expected: float = 0.1, **rest: Any) -> Step:
        return Step(name, "tests", ("-c", code, *rest.pop("words", ())), expected, **rest)

    def ran(self) -> list[str]:
        return [text.removesuffix(" …") for text in self.said if text.endswith(" …")]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_what_is_done_is_not_done_again_until_its_command_changes(desk: Desk) -> None:
    out = desk.folder / "one.json"
    one = desk.step("one", TICK, words=(str(out),), result=out)
    assert desk.call(one) == [] and desk.ran() == ["one"]
    assert desk.book.steps["one"]["result"] is False
    assert desk.call(one) == [] and desk.ran() == []
    assert desk.call(Step("one", "tests", one.arguments, 0.1, mark="other")) == [] and desk.ran() == ["one"]
    assert desk.call(desk.step("one", "pass")) == [] and desk.ran() == ["one"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(7)", "exit code 7"),
        ("import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    ],
)
def test_a_crash_is_a_result_and_the_rest_goes_on(desk: Desk, code: str, reason: str) -> None:
    steps = [desk.step("bad", code), desk.step("good", "print('fine')")]
    assert desk.call(*steps) == []
    found = desk.book.steps
    assert (found["bad"]["status"], found["bad"]["reason"]) == ("failed", reason)
    assert (found["good"]["status"], found["good"]["tail"]) == ("done", "fine\n")
    assert desk.call(*steps) == [] and desk.ran() == []
    text = page.page({"machines": [MACHINE], "steps": found})
    assert f"bad: failed, {reason}" in text
    assert "so far" in text or "SEGV" not in reason


def test_what_does_not_fit_is_left_and_a_smaller_one_is_not(desk: Desk) -> None:
    steps = [desk.step("long", "pass", expected=100), desk.step("short", "pass", expected=1)]
    assert desk.call(*steps, seconds=20, times=[0, 5, 5]) == ["long"]
    assert desk.ran() == ["short"]
    assert desk.call(*steps, seconds=20) == []  # a whole call is all that it can have
    assert desk.ran() == ["long"]


def test_what_the_calls_end_cuts_is_tried_again_and_what_outlasts_a_call_is_not(desk: Desk) -> None:
    slow = desk.step("slow", "import time; time.sleep(600)", expected=0.2)
    assert desk.call(slow, seconds=10, times=[0, 9.5]) == ["slow"]
    assert desk.book.steps["slow"]["status"] == "cut"
    assert desk.call(slow, seconds=0.5) == [] and desk.ran() == ["slow"]
    assert desk.book.steps["slow"]["status"] == "timed out"


def test_a_file_that_is_missing_skips_its_step_until_it_is_there(desk: Desk) -> None:
    wanted = desk.folder / "model.onnx"
    step = desk.step("bench", "pass", needs=(wanted,))
    assert desk.call(step) == ["bench"]
    assert str(wanted) in desk.book.steps["bench"]["reason"]
    wanted.touch()
    assert desk.call(step) == [] and desk.ran() == ["bench"]


def test_a_lost_model_is_made_again_where_something_needs_it(desk: Desk) -> None:
    model = desk.folder / "model"
    make = desk.step("make", TICK, words=(str(model),), makes=model)
    use = desk.step("use", "pass", needs=(model,))
    assert desk.call(make) == []
    model.unlink()
    assert desk.call(make) == [] and desk.ran() == []
    assert desk.call(make, use) == [] and desk.ran() == ["make", "use"]


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="give another --out"):
        Book(tmp_path / "results.json", MACHINE)


def test_without_a_gpu_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.gpu.__main__.read_gpu", lambda: None)
    assert main(["--out", str(tmp_path / "out")]) == 5
    assert "--rehearse" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


FULL = plan.steps(plan.full(Path("shared")), Path("work"), Path("libcusparseLt.so.0"))


def test_the_whole_plan_has_every_section_and_names_each_step_once() -> None:
    names = [step.name for step in FULL]
    assert len(set(names)) == len(names) > 40
    assert {step.section for step in FULL} == set(plan.SECTIONS)
    assert all(step.expected <= 9 * 60 for step in FULL)
    made = [step.makes for step in FULL]
    for place, step in enumerate(FULL):
        ours = [path for path in step.needs if path.is_relative_to("work")]
        assert [path for path in ours if path not in made[:place]] == [], step.name
    assert all((ROOT / name).is_file() for name in plan.full(Path()).tests)
    assert "tests/runtime/test_kernels_gpu.py" in plan.full(Path()).tests


COMMANDS = {step.arguments[2:] for step in FULL if step.arguments[1] == "gpusq_onnx"}


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=lambda words: f"{words[0]} {words[-1]}")
def test_a_command_of_the_whole_plan_is_understood(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Options are read before help is shown; passes are resolved with theirs."""
    assert gpusq([*words, "--help"]) == 0, capsys.readouterr().err
    if "-p" in words:
        assert resolve(parse(words[words.index("-p") + 1]))


def test_the_other_commands_of_the_whole_plan_are_understood() -> None:
    pytest.importorskip("torch")
    from tools.bench.gpu import _parser as bench
    from tools.bench.models import MODELS
    from tools.gpu.exact import _parser as exact

    read = 0
    for step in FULL:
        parser = {"tools.bench.gpu": bench, "tools.gpu.exact": exact}.get(step.arguments[1])
        if parser is not None:
            read += 1
            assert set(parser().parse_args(step.arguments[2:]).models.split(",")) <= set(MODELS), step.name
    assert read > 30


def rehearse(out: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "tools.gpu", "--rehearse", "--minutes", "600", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1, 3), done.stderr
    return done.returncode, json.loads((out / "results.json").read_text()), (out / "results.md").read_text()


@pytest.mark.long
def test_a_part_of_the_rehearsal(tmp_path: Path) -> None:
    """Kernels, networks, a compressed graph and the tests, in real processes; training and timing of graphs: below."""
    pytest.importorskip("torch")
    code, found, text = rehearse(tmp_path, "--only", "exact,networks,compress,pytest")
    assert code == 0, text
    assert {record["status"] for record in found["steps"].values()} == {"done"}
    assert {record["section"] for record in found["steps"].values()} == {"exact", "networks", "graphs", "tests"}
    assert all(f"## {title}" in text for title in page.TITLES.values())
    assert text.count("No result yet.") == 3
    code, again, _ = rehearse(tmp_path, "--only", "exact,networks,compress,pytest")
    assert code == 0 and again == found


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path) -> None:
    code, found, text = rehearse(tmp_path)
    assert code == 0, text
    assert {record["section"] for record in found["steps"].values()} == set(plan.SECTIONS)
    assert "No result yet." not in text
    assert "| digits.int8-24 | INT8 2:4 |" in text
    assert "| 1-step |" in text
    code, again, _ = rehearse(tmp_path)
    assert code == 0 and again == found


def test_a_wrong_kernel_is_shown() -> None:
    case = {"case": "197x768x768 bias+int8, setting 3", "ok": False, "difference": 0.25}
    record = {"section": "exact", "status": "failed", "reason": "exit code 1", "machine": 0, "tail": "", "seconds": 2}
    text = page.page({"machines": [MACHINE], "steps": {"exact-fused": {**record, "result": {"fused": [case]}}}})
    assert "- WRONG: fused, 197x768x768 bias+int8, setting 3: 0.25" in text


def test_the_documents_figures_are_what_is_known(tmp_path: Path) -> None:
    """Without a result, the page says that there is none; with one, it stands between the marks, and again."""
    document = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    if "- machine 0:" not in document:
        assert page.put_between_marks(document, page.NONE) == document
    results, copy = tmp_path / "results.json", tmp_path / "gpu.md"
    results.write_text(json.dumps({"machines": [MACHINE], "steps": {}}))
    copy.write_text(document)
    for _ in range(2):
        page.main([str(results), str(copy)])
        assert copy.read_text().count("- machine 0: gpu none") == 1
        assert copy.read_text().count(page.MARKS[0]) == 1
    with pytest.raises(ValueError, match="no place for figures"):
        page.put_between_marks("# A page", "figures")
