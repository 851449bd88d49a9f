"""Two processes on one CPU (gloo) train the model that one process trains, and one of them writes it.

Tolerances: losses of a round 1e-4 of their size; weights 1e-6 in the median and one peak learning rate at most, since
AdamW makes full steps of gradients that are zero but for rounding (a key's bias).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytestmark = pytest.mark.slow
pytest.importorskip("accelerate", reason="pip install 'gpusq-onnx[train]'")

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets"
LR = 4e-4
PASSES = f"prune24{{method=magnitude}},distill{{steps=6,batch=40,lr={LR},precision=float32,device=cpu}}"


def train(folder: Path, *launcher: str) -> Path:
    folder.mkdir()
    words = ["-m", "gpusq_onnx", "apply", ASSETS / "digits_vit.onnx", "-p", PASSES, "--samples", "80"]
    words += ["--data", ASSETS / "digits_train.npz", "-o", folder / "out.onnx", "--report", folder / "report.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("## distill") == 1  # one process speaks
    return folder


def findings(folder: Path) -> dict[str, object]:
    return json.loads((folder / "report.json").read_text())["steps"][1]["findings"]  # type: ignore[no-any-return]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "out.onnx").graph.initializer}


def test_two_processes_give_the_model_of_one(tmp_path: Path) -> None:
    one = train(tmp_path / "one")
    two = train(tmp_path / "two", "-m", "torch.distributed.run", "--nproc-per-node", "2")
    reported = [findings(folder) for folder in (one, two)]
    assert [found["training"]["processes"] for found in reported] == [1, 2]  # type: ignore[index]
    for single, double in zip(*(found["curve"] for found in reported), strict=True):  # type: ignore[call-overload]
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-4)
    assert reported[0]["agreement"] == reported[1]["agreement"]
    before, after = weights(one), weights(two)
    assert before.keys() == after.keys()
    for name, values in before.items():
        if values.dtype.kind == "f":
            apart = np.abs(after[name].astype(np.float64) - values)
            assert np.median(apart) < 1e-6 and apart.max() < LR, name
            assert ((after[name] == 0) == (values == 0)).all(), name
