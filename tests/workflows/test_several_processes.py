"""`tune` and `plan --sensitivity` under several processes: the answer of one, and one of them writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launched import environments

pytest.importorskip("torch", reason="several processes need torch")

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets"
WORDS = (
    "--data", str(ASSETS / "digits_train.npz"), "--samples", "48", "--calibrate", "16", "--images", "8", "--exact", "6",
    "--no-cache", str(ASSETS / "digits_vit.onnx"),
)  # fmt: skip


def started(folder: Path, *words: str, size: int) -> tuple[dict[str, Any], list[str]]:
    """The report of a command that `size` processes run as torchrun starts them, and what each prints."""
    folder.mkdir()
    command = [sys.executable, "-m", "gpusq_onnx", *words, *WORDS, "--report", "report.json"]
    running = [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **launched, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for launched in environments(size)
    ]
    try:
        ends = [process.communicate(timeout=600) for process in running]
    finally:
        for process in running:
            process.kill()  # none outlives the test
    assert [process.returncode for process in running] == [0] * size, [error for _, error in ends]
    return json.loads((folder / "report.json").read_text()), [said for said, _ in ends]


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--sensitivity"),
        ("tune", "--budget", "kl<=0.0005", "--measurements", "3", "-o", "recipe.toml"),
        (
            "tune",
            "--packed-size",
            "32%",
            "--measurements",
            "2",
            "--finetune-steps",
            "2",
            "--rounds",
            "1",
            "-o",
            "recipe.toml",
        ),
    ],
    ids=["sensitivity", "budget", "trained"],
)
def test_two_processes_find_what_one_finds(words: tuple[str, ...], tmp_path: Path) -> None:
    alone, _ = started(tmp_path / "one", *words, size=1)
    both, (leader, other) = started(tmp_path / "two", *words, size=2)
    assert leader and not other
    ours, theirs = alone.pop("points", []), both.pop("points", [])
    assert [point for point in ours if not point["trained"]] == [point for point in theirs if not point["trained"]]
    once, twice = ([point for point in points if point["trained"]] for points in (ours, theirs))
    for one, two in zip(once, twice, strict=True):
        assert one["choice"] == two["choice"]
        assert one["values"]["kl"] == pytest.approx(two["values"]["kl"], rel=0.2)  # batches are summed in another order
    if not once:
        assert both == alone
        assert (tmp_path / "one" / "report.md").read_text() == (tmp_path / "two" / "report.md").read_text()
