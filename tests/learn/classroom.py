"""The digits model pruned by magnitude, its dense teacher, and a way to train one towards the other; also a program.

python classroom.py OUTPUT.npz FOLDER KILL SETTINGS_JSON      trains, kills itself with SIGKILL in round KILL (0: never)
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.learn.history import History
from gpusq_onnx.learn.loop import train
from gpusq_onnx.learn.masks import Kept, patterns
from gpusq_onnx.learn.settings import TrainingOptions
from gpusq_onnx.learn.setup import Setup, prepare
from gpusq_onnx.progress import NullProgress
from gpusq_onnx.sparsity import magnitude
from gpusq_onnx.sparsity.patterns import Pattern

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit.onnx"
PRUNED = ("qkv", "proj", "fc1", "fc2")
TOY: dict[str, Any] = {"steps": 6, "batch": 8, "lr": 1e-3, "precision": "float32", "device": "cpu"}


def data(samples: int = 32) -> Source:
    """The first digits."""
    inputs = [InputSpec(s.name, s.dtype, s.shape) for s in io.load(MODEL).inputs()]
    return open_source(DataOptions(path=ASSETS / "digits_train.npz", samples=samples), inputs)


def pruned() -> Model:
    """The digits model with its blocks' Linears 2:4 by magnitude."""
    model = io.load(MODEL)
    for site in analyse(model).sites:
        if site.role in PRUNED:
            site.write(magnitude.prune(site.read(), Pattern(2, 4)))
    return model


def kept(model: Model) -> dict[str, Kept]:
    """The zero patterns of the pruned sites."""
    return patterns(site for site in analyse(model).sites if site.role in PRUNED)


def setup(model: Model, settings: TrainingOptions) -> Setup:
    """The pruned model and its dense teacher."""
    return prepare(model, analyse(model), io.load(MODEL), settings)


def run(samples: int = 32, **options: Any) -> tuple[Setup, History]:
    """Train; options of `train` and of TrainingOptions."""
    own = {key: options.pop(key) for key in ("folder", "interval", "progress", "seed") if key in options}
    settings, model = TrainingOptions(**{**TOY, **options}), pruned()
    taught = setup(model, settings)
    return taught, train(taught, data(samples), settings, kept=kept(model), **own)


def weights(taught: Setup) -> dict[str, Any]:
    """The student's parameters by initializer."""
    names = taught.student.initializers
    return {names[name]: p.detach().numpy().copy() for name, p in taught.student.named_parameters()}


def assert_close(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float = 3e-5) -> None:
    """All but the biases of q, k and v: a key's has no gradient but rounding, which Adam scales up to full steps."""
    for name, value in wanted.items():
        if not name.endswith("qkv.bias"):
            np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


class Killer(NullProgress):
    """Ends the process, without any farewell, when it receives something for the n-th time."""

    def __init__(self, round_: int) -> None:
        self.left = round_

    def note(self, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    output, folder, kill, options = sys.argv[1:]
    where = Path(folder) if folder else None
    taught, _ = run(folder=where, interval=0, progress=Killer(int(kill)), **json.loads(options))
    np.savez(output, **weights(taught))
