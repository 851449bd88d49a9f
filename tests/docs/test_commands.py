"""Every command of the documents does what it says: run here on the embedded model, in the order of the pages.

The README's run with the fast tests, those that train and the quickstart's with the long ones, and those of the other
pages with the slow ones; a wrong verb, option or pass in any of them is found by the fast ones.
"""

import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pages import PAGES, README, ROOT, commands, shown
from PIL import Image

from gpusq_onnx.cli import main
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.grammar import parse
from tests.cli.command_line import Outcome, call

ALL = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
FIRST, SECOND = (set(commands(page)) for page in (README, ROOT / "docs" / "quickstart.md"))


def mark(command: str) -> tuple[pytest.MarkDecorator, ...]:
    """Which tests the command runs with."""
    if command in FIRST:
        return (pytest.mark.long,) if "--finetune" in command else ()
    return (pytest.mark.long if command in SECOND else pytest.mark.slow,)


OURS = [pytest.param(command, marks=mark(command)) for command in ALL if command.startswith("gpusq-onnx ")]
# Those of transcripts, too, which are not run: an engine wants a GPU.
SHOWN = sorted({shlex.join(words) for page in PAGES for words in shown(page)})

# The pages speak of a 224-pixel model, the embedded one takes 32; and of epochs, where a few steps show the same.
FOR_THE_DIGITS = {"--resize 248": "--resize 32", "--crop 224": "--crop 32", "--finetune 2": "--finetune-steps 4"}
# No detector and no segmenter is embedded: test_check_detector.py and test_check_segmenter.py in tests/cli have them.
FOR_THE_DIGITS |= {"detector.onnx": "model.onnx", "val2017/": "images/"}
FOR_THE_DIGITS |= {"--annotations instances_val2017.json --max-ap-drop 1": ""}
FOR_THE_DIGITS |= {"segmenter.onnx": "model.onnx", "ADE20K/images/validation/": "images/", "--resize 512": ""}
FOR_THE_DIGITS |= {"--masks ADE20K/annotations/validation/ --reduce-zero-label": "", "--max-miou-drop 1": ""}
FOR_THE_DIGITS |= {"--data val/": "--data images/"}

MADE_BY = {
    "small.onnx": "apply --passes prune24,qdq-int8 --report report.json -o small.onnx model.onnx",
    "pruned.onnx": "apply --passes prune24 -o pruned.onnx model.onnx",
    "compressed/first.onnx": "apply --passes prune24,qdq-int8 -o compressed/ models/first.onnx models/second.onnx",
    "report.json": "apply --passes qdq-int8 --report report.json -o other.onnx model.onnx",
    "check.json": "check --report check.json model.onnx model.onnx",
    "small.gpusq": "pack small.onnx",
    "recipe.toml": "tune --budget 'kl<=1' --data images/ --samples 24 --exact 0 --forms int8 -o recipe.toml model.onnx",
}


def gpusq(arguments: list[str], cwd: Path) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        return call(*arguments)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents' reader has: model.onnx, images/ in one folder a class, classes.txt."""
    desk = tmp_path_factory.mktemp("desk")
    assets = ROOT / "tests" / "assets"
    (desk / "models").mkdir()
    for name in ("model.onnx", "models/first.onnx", "models/second.onnx"):
        (desk / name).write_bytes((assets / "digits_vit.onnx").read_bytes())
    with np.load(assets / "digits_test.npz") as data:
        pixels = np.rint((data["pixel_values"] * 0.5 + 0.5) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        labels = data["labels"]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = desk / "images" / f"digit-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    (desk / "classes.txt").write_text("".join(f"digit-{digit}\n" for digit in range(10)))
    return desk


def test_the_documents_have_the_commands_that_they_promise():
    verbs = {command.split()[1] for command in ALL if command.startswith("gpusq-onnx ")}
    assert verbs >= {"apply", "plan", "inspect", "check", "build", "passes", "report", "pack", "unpack", "bench"}
    assert {"apply", "plan", "check", "inspect", "build", "passes"} <= {
        command.split()[1] for command in commands(README)
    }


def make(name: str, desk: Path) -> None:
    """A file that an earlier command of the pages leaves, with what it is made from."""
    maker = shlex.split(MADE_BY[name])
    for other in MADE_BY:
        if other in maker and other != name and not (desk / other).exists():
            make(other, desk)
    assert gpusq(maker, desk).code == 0


@pytest.mark.parametrize("command", OURS)
def test_a_command_runs(command: str, desk: Path):
    for written, here in FOR_THE_DIGITS.items():
        command = command.replace(written, here)
    arguments = shlex.split(command)[1:]
    if "--parser" in arguments:
        cache = os.environ.get("GPUSQ_TRT_CPU") or pytest.skip("set GPUSQ_TRT_CPU to a folder, as `make test` does")
        arguments += ["--trt-cache", cache]
    if "--cpu-harness" in arguments:
        cache = os.environ.get("GPUSQ_TRT_CPU") or pytest.skip("set GPUSQ_TRT_CPU to a folder, as `make test` does")
        arguments[arguments.index("--cpu-harness") + 1] = cache
    for name, maker in MADE_BY.items():  # by an earlier command, unless this one runs alone
        if name in arguments and arguments[0] != maker.split()[0] and not (desk / name).exists():
            make(name, desk)
    if "-o" in arguments and "distill{" in command and not (desk / "pruned.onnx").exists():
        make("pruned.onnx", desk)
    done = gpusq(arguments, desk)
    on_a_gpu = arguments[0] in ("build", "bench") and not {"--cpu-harness", "--backend"} & set(arguments)
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
