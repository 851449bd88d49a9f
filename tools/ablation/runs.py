"""Carry out one arm: a pipeline on a model, then every test image through onnxruntime.

All arms of one seed share the start, the data order and the number of steps. What was run already is not run again: a
run's result is a JSON file beside its answers, and both appear when the run is whole.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.base import Context, PlanContext
from gpusq_onnx.pipeline.facts import SparseWeight
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.pipeline.table import resolve
from gpusq_onnx.runtime.ort import Session
from tools.ablation.arms import PAPER, Arm
from tools.ablation.int4 import to_int4
from tools.ablation.vit_cifar10 import INPUT, data_options

CALIBRATED = 1024  # images, at most


@dataclass(frozen=True)
class Size:
    """How much is done in each arm.

    Attributes:
        images: training images that a run sees (spread over the classes); pruning and calibrating, 1024 of them.
        steps, batch: of every training.
        lr, qat_lr: peak learning rates of the float and the quantised training.
        test: test images.
    """

    images: int = 8192
    steps: int = 100
    batch: int = 128
    lr: float = 5e-4
    qat_lr: float = 1e-4
    test: int = 10000


@dataclass(frozen=True)
class Desk:
    """Where the models and results lie, and the size of things."""

    folder: Path
    data: Path
    size: Size

    def options(self, lr: float, options: str = "") -> str:
        """The options of a training: the paper's, with those of the arm in their place."""
        shared = f"steps={self.size.steps} batch={self.size.batch} lr={lr} crop=0.6"
        merged = dict(option.split("=") for option in f"{shared} {PAPER} {options}".split())
        return " ".join(f"{key}={value}" for key, value in merged.items())

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        """The arm's result, computed where it is not there yet."""
        path = self.folder / f"{arm.key}.{seed}.json"
        rate = self.size.lr if arm.group == "float" else self.size.qat_lr
        options = None if arm.options is None else self.options(rate, arm.options)
        wanted = {**asdict(self.size), "options": options, "seed": seed}
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            if found["wanted"] == wanted:
                return found
        self.prepare(arm.group, seed)
        began = time.perf_counter()
        model = self._model(arm, options, seed)
        dense, labels = dense_answers(self.folder / "dense.onnx", self.data, self.size.test)
        logits, _ = answers(model, self.data, self.size.test)
        right = logits.argmax(1) == labels
        agree = float((logits.argmax(1) == dense.argmax(1)).mean())
        np.save(path.with_suffix(".npy"), np.packbits(right))
        result = {"wanted": wanted, "arm": arm.name, "group": arm.group, "seed": seed, "top1": float(right.mean())}
        result |= {"agreement": agree, "kl": _divergence(dense, logits), "seconds": time.perf_counter() - began}
        path.write_text(json.dumps(result, indent=1) + "\n")
        return result

    def prepare(self, group: str, seed: int) -> None:
        """Make what the arms of a group start from, where it is missing; one process at a time a seed."""
        pruned = self.start("pruned", seed)
        if not pruned.exists():
            self._apply(self.folder / "dense.onnx", pruned, "prune24{method=sparsegpt}", seed)
        if group == "float":
            return
        sparse, int8, int4 = (self.start(name, seed) for name in ("sparse", "int8", "int4"))
        if not sparse.exists():
            teacher = f"teacher={self.folder / 'dense.onnx'}"
            self._apply(pruned, sparse, f"distill{{{self.options(self.size.lr)} {teacher}}}", seed)
        if not int8.exists():
            self._apply(sparse, int8, "qdq-int8{profile=sparse-int8}", seed)
        if group == "int4" and not int4.exists():
            to_int4(int8, int4)

    def start(self, name: str, seed: int) -> Path:
        """Where a model lies that several arms start from: "pruned", "sparse", "int8" or "int4", of this size."""
        made_with = (self.size.images, self.size.steps, self.size.batch, self.size.lr)
        return self.folder / f"{name}.{seed}.{'-'.join(map(str, made_with))}.onnx"

    def _model(self, arm: Arm, options: str | None, seed: int) -> Path:
        """The arm's model."""
        dense, out = self.folder / "dense.onnx", self.folder / f"{arm.key}.{seed}.onnx"
        start = dense if arm.dense else self.start("pruned" if arm.group == "float" else arm.group, seed)
        if options is None:
            return start
        if arm.group == "float":
            return self._apply(start, out, f"distill{{{options} teacher={dense}}}", seed)
        passes = f"qat{{{options} teacher={self.start('sparse', seed)} dense={dense}}}"
        return (self._learn if arm.group == "int4" else self._apply)(start, out, passes, seed)

    def _apply(self, model: Path, out: Path, passes: str, seed: int) -> Path:
        manager.run(model, out, parse(passes), RunOptions(self._data(seed)))
        return out

    def _learn(self, model: Path, out: Path, passes: str, seed: int) -> Path:
        """`_apply` without the manager, which refuses INT4 activations: TensorRT would, too."""
        (step,) = resolve(parse(passes))
        loaded = io.load(model)
        structure = analyse(loaded)
        source = open_source(self._data(seed), [INPUT])
        rows = step.plan(loaded, structure, PlanContext(data=True))
        step.apply(loaded, structure, rows, Context(source, seed))
        changed = analyse(loaded)
        broken = [fact.broken(loaded, changed) for fact in step.ensures(rows) if isinstance(fact, SparseWeight)]
        assert not any(broken), broken
        io.save(loaded, out)
        return out

    def _data(self, seed: int) -> DataOptions:
        options = data_options(self.data, "train", self.size.images)
        return options.model_copy(update={"seed": seed, "calibrate": min(self.size.images, CALIBRATED)})


def answers(model: Path, data: Path, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits and labels of the first test images; quantised nodes computed as the graph says, nothing fused."""
    session = Session(model, exact_qdq=True)
    logits, labels = [], []
    for batch in open_source(data_options(data, "test", count), [INPUT]).batches(256):
        logits.append(session.run(batch.feed)["logits"][: batch.size])
        assert batch.labels is not None
        labels.append(batch.labels)
    return np.concatenate(logits), np.concatenate(labels)


dense_answers = cache(answers)
"""`answers` of the model with which every arm is compared: once a process."""


def _divergence(teacher: NDArray[np.float32], student: NDArray[np.float32]) -> float:
    """Mean KL(teacher || student) of softmaxed logits, in nats."""
    t, s = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), 1)[:, None] for x in (teacher, student))
    return float((np.exp(t) * (t - s)).sum(1).mean())
