"""Every command of the README does what it says: run here on the embedded model, in the README's order."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from arrows import ROOT
from PIL import Image

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
OURS = [command for command in COMMANDS if command.startswith("gpusq-onnx ")]
# The README speaks of a 224-pixel model, the embedded one takes 32; and of epochs, where a few steps show the same.
FOR_THE_DIGITS = {"--resize 248": "--resize 32", "--crop 224": "--crop 32", "--finetune 2": "--finetune-steps 4"}
# No detector and no segmenter is embedded: test_check_detector.py and test_check_segmenter.py in tests/cli have them.
FOR_THE_DIGITS |= {"detector.onnx": "model.onnx", "val2017/": "images/"}
FOR_THE_DIGITS |= {"--annotations instances_val2017.json --max-ap-drop 1": ""}
FOR_THE_DIGITS |= {"segmenter.onnx": "model.onnx", "ADE20K/images/validation/": "images/", "--resize 512": ""}
FOR_THE_DIGITS |= {"--masks ADE20K/annotations/validation/ --reduce-zero-label": "", "--max-miou-drop 1": ""}

MADE_BY = {
    "small.onnx": "apply --passes prune24,qdq-int8 --report report.json -o small.onnx model.onnx",
    "report.json": "apply --passes qdq-int8 --report report.json -o other.onnx model.onnx",
    "check.json": "check --report check.json model.onnx model.onnx",
    "small.gpusq": "pack small.onnx",
}


def gpusq(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpusq_onnx", *arguments]
    # Small models gain nothing from threads, and lose much where other tests run beside them.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's reader has: model.onnx, images/ in one folder a class, classes.txt."""
    desk = tmp_path_factory.mktemp("desk")
    assets = ROOT / "tests" / "assets"
    (desk / "model.onnx").write_bytes((assets / "digits_vit.onnx").read_bytes())
    with np.load(assets / "digits_test.npz") as data:
        pixels = np.rint((data["pixel_values"] * 0.5 + 0.5) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        labels = data["labels"]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = desk / "images" / f"digit-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    (desk / "classes.txt").write_text("".join(f"digit-{digit}\n" for digit in range(10)))
    return desk


def test_the_readme_has_the_commands_that_it_promises():
    verbs = {command.split()[1] for command in OURS}
    assert verbs >= {"apply", "plan", "inspect", "check", "build", "passes", "report", "pack", "unpack", "bench"}


@pytest.mark.parametrize("command", OURS)
def test_a_command_runs(command: str, desk: Path):
    for told, here in FOR_THE_DIGITS.items():
        command = command.replace(told, here)
    arguments = shlex.split(command)[1:]
    if "--parser" in arguments:
        cache = os.environ.get("GPUSQ_TRT_CPU") or pytest.skip("set GPUSQ_TRT_CPU to a folder, as `make test` does")
        arguments += ["--trt-cache", cache]
    if "--cpu-harness" in arguments:
        cache = os.environ.get("GPUSQ_TRT_CPU") or pytest.skip("set GPUSQ_TRT_CPU to a folder, as `make test` does")
        arguments[arguments.index("--cpu-harness") + 1] = cache
    for name, maker in MADE_BY.items():  # by an earlier command, unless this one runs alone
        if name in arguments and arguments[0] != maker.split()[0] and not (desk / name).exists():
            assert gpusq(maker.split(), desk).returncode == 0
    done = gpusq(arguments, desk)
    on_a_gpu = arguments[0] in ("build", "bench") and not {"--cpu-harness", "--backend"} & set(arguments)
    if on_a_gpu and find_spec("tensorrt") is None:
        assert (done.returncode, "pip install 'gpusq-onnx[tensorrt]'" in done.stderr) == (5, True), done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", [command.split()[1] for command in COMMANDS if command.startswith("make ")])
def test_a_make_target_exists(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_path_named_in_the_readme_exists():
    named = re.findall(r"`((?:gpusq_onnx|passes|tools|tests|\.ci)/[\w./]*)`", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_exit_codes_are_those_of_the_errors():
    from gpusq_onnx import errors

    told = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GpusqError)]
    assert told == {kind.exit_code for kind in classes} | {0, 130}
