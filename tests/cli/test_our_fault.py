"""Exit 4 with a reproducer that shows the failure again, and exit 5 where the environment lacks something."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import toy_passes
from command_line import IMAGES, MODEL, ROOT, call, fresh_model
from desk import contents, unchanged

from gpusq_onnx.pipeline import reproducer

CALIBRATION = ["--data", str(IMAGES), "--samples", "8", "--seed", "3"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy_passes.install(monkeypatch)
    return fresh_model(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("pipeline", "failing", "says"),
    [
        ("raises{strength=3}", "raises", "IndexError: list index out of range"),
        ("prune24{method=magnitude},raises", "raises", "IndexError: list index out of range"),
        ("prune24,disconnects,qdq-int8", "disconnects", "InvariantError"),
        ("prune24{method=magnitude},densifies", "densifies", "is 2:4 along its reduction axis"),
        ("prune24{method=sparsegpt},qdq-int8,raises", "raises", "IndexError: list index out of range"),
    ],
)
def test_a_pass_that_goes_wrong_leaves_a_reproducer(pipeline: str, failing: str, says: str, model: Path) -> None:
    outcome = call("apply", model, "-p", pipeline, *CALIBRATION)
    assert (outcome.code, outcome.out) == (4, ""), outcome.err
    assert outcome.err.startswith(f"pass failed: the pass {failing!r} failed")
    assert says in outcome.err
    folder = model.with_name("model.gpusq.onnx.reproducer")
    assert sorted(contents(model.parent)) == [
        "model.gpusq.onnx.reproducer",
        *(f"model.gpusq.onnx.reproducer/{name}" for name in ("data.toml", "error.txt", "model.onnx", "recipe.toml")),
        "model.onnx",
    ]
    error = (folder / "error.txt").read_text()
    assert says in error
    assert "Traceback" in error
    onnx.checker.check_model(folder / "model.onnx")

    # The command that the message prints shows the failure again, the breach of an earlier pass's promise included.
    command = shlex.split(outcome.err.split("gpusq-onnx ")[1].splitlines()[0])
    assert command[0] == "apply"
    again = call(*command)
    assert again.code == 4
    assert again.err.splitlines()[:2] == outcome.err.splitlines()[:2]


@pytest.mark.long
def test_the_reproducer_holds_the_failing_pass_s_input_and_the_rest(model: Path) -> None:
    assert call("apply", model, "-p", "prune24,raises{strength=3},qdq-int8", *CALIBRATION).code == 4
    folder = model.with_name("model.gpusq.onnx.reproducer")
    assert (folder / "recipe.toml").read_text() == (
        '[[pass]]\nname = "raises"\nstrength = 3\n\n[[pass]]\nname = "qdq-int8"\n'
    )
    assert (folder / "data.toml").read_text() == f'path = "{IMAGES}"\nsamples = 8\nseed = 3\n'
    alone = model.with_name("alone.onnx")
    assert call("apply", model, "-p", "prune24", *CALIBRATION, "-o", alone).code == 0

    def weights(path: Path) -> dict[str, bytes]:
        return {tensor.name: tensor.raw_data for tensor in onnx.load(path).graph.initializer}

    assert weights(folder / "model.onnx") == weights(alone)


def test_a_reproducer_that_cannot_be_written_hides_no_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reproducer, "write", full)
    with unchanged(model.parent):
        outcome = call("apply", model, "-p", "raises")
    assert outcome.code == 4
    assert "IndexError: list index out of range" in outcome.err
    assert "no reproducer could be written (OSError: [Errno 28] No space left on device)" in outcome.err


def test_an_older_reproducer_is_replaced(model: Path) -> None:
    assert call("apply", model, "-p", "raises{strength=2}").code == 4
    assert call("apply", model, "-p", "raises{strength=9}").code == 4
    recipe = model.with_name("model.gpusq.onnx.reproducer") / "recipe.toml"
    assert "strength = 9" in recipe.read_text()


@pytest.mark.long
def test_a_parser_is_asked_for_and_there_is_none(tmp_path: Path) -> None:
    """No tensorrt that starts, no compiler for the harness: exit 5, with what to install, and an empty cache."""
    (tmp_path / "tensorrt.py").write_text('raise ImportError("no TensorRT here")\n')
    cache = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": str(tmp_path / "no_tools")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    words = ["check", MODEL, MODEL, "--data", IMAGES, "--samples", "4", "--parser", "--trt-cache", cache]
    command = [sys.executable, "-m", "gpusq_onnx", *map(str, words)]
    with unchanged(tmp_path):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert done.stderr.startswith("environment lacks something: ")
    assert "C compiler" in done.stderr
    assert "apt-get install gcc" in done.stderr


def test_not_enough_memory_is_no_defect(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(toy_passes.Raises, "apply", hungry)
    with unchanged(model.parent):
        outcome = call("apply", model, "-p", "raises")
    assert outcome.code == 5
    assert "not enough memory" in outcome.err


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m gpusq_onnx plan {MODEL} -p prune24,qdq-int8 | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_training_where_torch_is_missing_says_so_before_any_work(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_onnx.learn.environment.find_spec", lambda _: None)
    monkeypatch.setattr("gpusq_onnx.passes.prune.Prune24.apply", lambda *_: pytest.fail("it began to work"))
    with unchanged(model.parent):
        outcome = call("apply", model, "-p", "prune24", "--finetune-steps", "3", *CALIBRATION)
    assert (outcome.code, outcome.out) == (5, "")
    assert "pip install 'gpusq-onnx[train]'" in outcome.err
