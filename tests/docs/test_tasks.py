"""docs/tasks.md, run from top to bottom: what the commands print is what the page shows, but for the numbers.

python tests/docs/test_tasks.py    writes what they print into the page, to be looked at in the diff
"""

import contextlib
import io
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT

from gpusq_onnx.cli import main
from tests.terminal import terminal
from tools.digits import desk, newcomer

PAGE = ROOT / "docs" / "tasks.md"
COLUMNS = "80"
_BLOCK = re.compile(r"^```(console|python)(?: title=\"([^\"\n]*)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def played(text: str) -> str:
    """The page with its commands run in the folder at hand, and what they print now in place of what it shows."""
    codes = [0]

    def run(block: re.Match[str]) -> str:
        language, title, body = block[1], block[2], block[3]
        if language == "python":
            Path(title).write_text(body, encoding="utf-8")
            return block[0]
        commands = [line for line in body.splitlines() if line.startswith("$ ")]
        shown = "\n".join(f"{line}\n{_printed(line[2:], codes)}".rstrip() for line in commands)
        return f"```console\n{shown}\n```"

    return _BLOCK.sub(run, text)


def _printed(command: str, codes: list[int]) -> str:
    words = shlex.split(command)
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        if words[0] == "gpusq-onnx":
            codes.append(main(words[1:]))
        elif words[0] == "python":
            exec(compile(Path(words[1]).read_text(encoding="utf-8"), words[1], "exec"), {"__name__": "__main__"})
        else:
            assert words == ["echo", "$?"]
            print(codes[-1])
    return out.getvalue() + (errors.getvalue() if codes[-1] else "")


@contextlib.contextmanager
def in_desk(folder: Path) -> Iterator[None]:
    """The desk is the current folder, and the terminal has 80 columns."""
    desk.write(folder)
    with terminal(folder, COLUMNS):
        yield


def normal(text: str) -> str:
    """Without numbers, versions and what depends on their width, and so on the CPU."""
    text = re.sub(r"\d[\d.,e-]*%?", "#", text)
    return re.sub(r"[ \n|+-]+", " ", text)


@pytest.mark.long
def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    for module in ("faster_coco_eval", "jinja2", "matplotlib"):
        pytest.importorskip(module)
    shown = PAGE.read_text(encoding="utf-8")
    tasks, real = shown.split("## On real data")
    with in_desk(tmp_path / "desk"):
        now = played(tasks)
        assert Path("python.onnx").read_bytes() == Path("small.onnx").read_bytes() == Path("ci.onnx").read_bytes()
    assert normal(now) == normal(tasks), "run `python tests/docs/test_tasks.py` and look at the difference"
    # What no CPU changes: gates that are met, one that is not, and the kernels.
    assert len(re.findall("gates: .*: met", now)) == 2 and "gates: --max-ap-drop 2: met" in now
    assert "all 14 weights can run dense kernels" in normal_space(now) and "\n$ echo $?\n1\n" in now
    assert "12 of 14 weights can run sparse kernels" in normal_space(now)
    assert real


def test_the_readme_has_the_commands_of_each_task() -> None:
    """`newcomer` follows them; test_commands.py and test_examples.py run them."""
    found = newcomer.tasks()
    assert len(found) == 6
    assert [
        title for title, text in found.items() if "gpusq-onnx " not in text and "import gpusq_onnx" not in text
    ] == []
    assert "--max-ap-drop" in found["Compress a detector and gate its AP"]


def normal_space(text: str) -> str:
    """The text on one line."""
    return re.sub(r"\s+", " ", text)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch, in_desk(Path(scratch) / "desk"):
        first, mark, rest = page.partition("## On real data")
        page = played(first) + mark + rest
    PAGE.write_text(page, encoding="utf-8")
