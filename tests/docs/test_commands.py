"""Every command of the documents does what it says: run here on the embedded model, after what its page runs for it.

The README's first of each verb run with the fast tests, its others and the quickstart's with the long ones, and those
of the other pages with the slow ones; a wrong verb, option or pass in any of them is found by the fast ones.
"""

import itertools
import os
import re
import shlex
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from pages import PAGES, README, ROOT, commands, shown

from gpusq_onnx.cli import main
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.grammar import parse
from tests.cli.command_line import Outcome, call
from tools.digits.desk import write

ALL = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
FIRST = {command.split()[1]: command for command in reversed(commands(README))}.values()  # of each verb
SECOND = {*commands(README), *commands(ROOT / "docs" / "quickstart.md")}


def mark(command: str) -> tuple[pytest.MarkDecorator, ...]:
    """Which tests the command runs with."""
    if command in FIRST:
        return ()
    return (pytest.mark.long if command in SECOND else pytest.mark.slow,)


OURS = [pytest.param(command, marks=mark(command)) for command in ALL if command.startswith("gpusq-onnx ")]
# Those of transcripts, too, which are not run: an engine wants a GPU.
SHOWN = sorted({shlex.join(words) for page in PAGES for words in shown(page)})

# The pages speak of a 224-pixel model, the embedded one takes 32; and of epochs, where a few steps show the same.
FOR_THE_DIGITS = {"--resize 248": "--resize 32", "--crop 224": "--crop 32", "--finetune 2": "--finetune-steps 4"}
FOR_THE_DIGITS |= {"val2017/": "scenes/", "instances_val2017.json": "instances.json"}
# No segmenter is embedded: test_check_segmenter.py in tests/cli has one.
FOR_THE_DIGITS |= {"segmenter.onnx": "model.onnx", "ADE20K/images/validation/": "images/", "--resize 512": ""}
FOR_THE_DIGITS |= {"--masks ADE20K/annotations/validation/ --reduce-zero-label": "", "--max-miou-drop 1": ""}

# What a page takes for granted, where none of its commands makes it.
APPLY = "gpusq-onnx apply --passes prune24,qdq-int8 --data images/"
MADE_BY = {
    "small.onnx": f"{APPLY} --report report.json -o small.onnx model.onnx",
    "sparse.onnx": f"{APPLY} --set qdq-int8.profile=sparse-int8 -o sparse.onnx model.onnx",
    "pruned.onnx": "gpusq-onnx apply --passes prune24 -o pruned.onnx model.onnx",
    "small.gpusq": "gpusq-onnx pack small.onnx",
}


def writes(command: str) -> set[str]:
    """The files that a command of the pages leaves, as they are named there."""
    words = shlex.split(command)
    found = {after for word, after in itertools.pairwise(words) if word in ("-o", "--report")}
    return found | {words[-1].replace(".onnx", ".gpusq")} if words[1] == "pack" else found


class Workshop:
    """Runs each command in a folder of its own, with what it reads from those of the commands that make it.

    A command runs once, whichever test asks first, so no test depends on another.
    """

    def __init__(self, desk: Path) -> None:
        self._desk = desk
        self._done: dict[str, tuple[Path, Outcome]] = {}

    def run(self, command: str) -> Outcome:
        """What the command left."""
        return self._run(command)[1]

    def _run(self, command: str) -> tuple[Path, Outcome]:
        if command not in self._done:
            folder = Path(tempfile.mkdtemp(dir=self._desk.parent))
            shutil.copytree(self._desk, folder, copy_function=os.link, dirs_exist_ok=True)
            for maker in makers(command):
                made, outcome = self._run(maker)
                assert outcome.code == 0, outcome.err
                shutil.copytree(made, folder, copy_function=link_once, dirs_exist_ok=True)
            self._done[command] = folder, gpusq(arguments(command), folder)
        return self._done[command]


def link_once(source: str, target: str) -> None:
    """A file of another folder, but for those that are here."""
    if not Path(target).exists():
        os.link(source, target)


def has(written: set[str], name: str) -> bool:
    """Whether a file is among those that are written, or in a folder of them."""
    return name in written or any(name.startswith(one) for one in written if one.endswith("/"))


def makers(command: str) -> list[str]:
    """The commands that make what a command reads: earlier ones of its page, those that train aside, else `MADE_BY`."""
    page = next((page for page in PAGES if command in commands(page)), None)
    earlier = commands(page)[: commands(page).index(command)] if page else []
    found = []
    for name in dict.fromkeys(shlex.split(command)):
        if name in writes(command):
            continue
        made = [one for one in earlier if "--finetune" not in one and has(writes(one), name)]
        found += made[-1:] or filter(None, [MADE_BY.get(name)])
    return found


def arguments(command: str) -> list[str]:
    """The words of a command of the pages, as they are run here."""
    for written, here in FOR_THE_DIGITS.items():
        command = command.replace(written, here)
    words = shlex.split(command)[1:]
    if "--parser" in words:
        words += ["--cpu-harness", parser_cache()]
    if "--cpu-harness" in words:
        words[words.index("--cpu-harness") + 1] = parser_cache()
    return words


def parser_cache() -> str:
    return os.environ.get("GPUSQ_TRT_CPU") or pytest.skip("set GPUSQ_TRT_CPU to a folder, as `make test` does")


def gpusq(words: list[str], cwd: Path) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        return call(*words)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """With what the documents' reader has: the desk of the README, and some models in one folder."""
    desk = tmp_path_factory.mktemp("documents") / "desk"
    write(desk)
    (desk / "models").mkdir()
    for name in ("first.onnx", "second.onnx"):
        (desk / "models" / name).write_bytes((desk / "model.onnx").read_bytes())
    return Workshop(desk)


def test_the_documents_have_the_commands_that_they_promise():
    verbs = {command.split()[1] for command in ALL if command.startswith("gpusq-onnx ")}
    assert verbs >= {
        "apply",
        "plan",
        "inspect",
        "check",
        "build",
        "passes",
        "report",
        "pack",
        "unpack",
        "bench",
        "tune",
    }
    assert {"apply", "plan", "check", "inspect", "build", "passes", "tune"} <= {
        command.split()[1] for command in commands(README)
    }


@pytest.mark.long
@pytest.mark.parametrize("command", OURS)
def test_a_command_runs(command: str, workshop: Workshop):
    done, words = workshop.run(command), arguments(command)
    on_a_gpu = words[0] in ("build", "bench") and not {"--cpu-harness", "--backend"} & set(words)
    if on_a_gpu and find_spec("tensorrt") is None:
        assert (done.code, "pip install 'gpusq-onnx[tensorrt]'" in done.err) == (5, True), done.err
        return
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_is_understood(command: str, capsys: pytest.CaptureFixture[str]):
    """Its verb and options are ours, and so are its passes with theirs, whatever files it names."""
    words = shlex.split(command)
    assert main([*words, "--help"]) == 0, capsys.readouterr().err  # options are read before help is shown
    if "--passes" in words and "zero-small" not in command:  # the plug-in of writing-a-pass.md has a test of its own
        assert table.resolve(parse(words[words.index("--passes") + 1]))


def test_a_wrong_option_is_seen():
    assert main(["apply", "--pases", "prune24", "model.onnx", "--help"]) == 2


@pytest.mark.parametrize("target", [command.split()[1] for command in ALL if command.startswith("make ")])
def test_a_make_target_exists(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
