"""Runs in processes of their own: one that is killed and goes on, and two that share a batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import classroom
import numpy as np
import pytest

from tests.launched import environments

pytest.importorskip("accelerate", reason="needs the extra `train`")

from gpusq_onnx.progress import NullProgress

ROOT = Path(__file__).parents[2]
LOOKS = {"average": 0.9, "jitter": 0.2, "mix": "both", "blockwise": 0.5, "tokens": 0.5, "features": "blocks"}


class Steps(NullProgress):
    """Notes how the training stage gets on."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.said: list[str] = []
        self.training = False

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        self.training = label == "training"

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, n: int = 1) -> None:
        self.done += [n] * self.training


def _start(output: Path, folder: Path | str, kill: int, options: dict[str, Any], **env: str) -> subprocess.Popen[str]:
    """classroom.py as a program."""
    command = [sys.executable, classroom.__file__, str(output), str(folder), str(kill), json.dumps(options)]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    every = {**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(command, env=every, stderr=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str]) -> int:
    try:
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()  # none outlives the test
    assert process.returncode in (0, -signal.SIGKILL), errors[-2000:]
    return process.returncode


@pytest.mark.long
def test_killed_and_resumed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder, output = tmp_path / "run", tmp_path / "out.npz"
    options = {**classroom.TOY, **LOOKS}
    assert _end(_start(output, folder, 5, options)) == -signal.SIGKILL
    assert not output.exists() and (folder / "checkpoint.safetensors").exists()
    watched = Steps()
    resumed, _ = classroom.run(folder=folder, interval=0, progress=watched, **LOOKS)
    assert watched.done == [1, 1], "four steps were in the checkpoint"
    assert watched.said == ["resuming from training step 4 of 6, which an earlier run had reached"]
    taught, history = classroom.run(**LOOKS)
    again = classroom.weights(resumed)
    for name, value in classroom.weights(taught).items():
        assert again[name].tobytes() == value.tobytes(), name
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == [row["loss"] for row in history.curve]


@pytest.mark.long
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Up to the order of float32 sums, which Adam's first steps magnify: 3e-5, a tenth of what is learned."""
    looks = {"mix": "mixup", "lr": 1e-4, "blockwise": 0.5, "tokens": 0.5, "features": "blocks"}
    options = {**classroom.TOY, **looks}
    outputs = [tmp_path / f"{rank}.npz" for rank in range(2)]
    both = [_start(output, "", 0, options, **env) for output, env in zip(outputs, environments(2), strict=True)]
    assert [_end(process) for process in both] == [0, 0]
    alone, _ = classroom.run(**looks)
    start = classroom.weights(classroom.setup(classroom.pruned(), classroom.TrainingOptions()))
    learned = classroom.weights(alone)
    with np.load(outputs[0]) as first, np.load(outputs[1]) as second:
        assert all(first[name].tobytes() == second[name].tobytes() for name in learned)
        classroom.assert_close(first, learned)
    moved = max(float(np.abs(value - start[name]).max()) for name, value in learned.items())
    assert moved > 3e-4, "the tolerance must be small beside what was learned"
