"""The stand-ins as one table: how each is trained, what data it takes, and how it is compressed and scored.

Both forms are the paper's three steps: a pattern with SparseGPT's weight update, distillation from the dense model, and
quantisation whose scales are then learned. The losses are the passes' own; no labels are used. Learning rates are
higher than the passes' defaults, set beforehand and not tuned: a model this small learns faster. Digits may be neither
mirrored nor cut.

Parts of the data: train (what the compression sees, of what the model was trained on), held (not trained on, of the
training data; for choosing), test (for the table).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pyarrow.parquet
from torch import nn

from gpusq_onnx.data.options import DataOptions
from tools.ablation.vit_cifar10 import HELD_OUT, MEAN, STD
from tools.standins import classifier, detector, scenes, segmenter

Part = Literal["train", "held", "test"]
FORMS = {
    "INT8 2:4": ("prune24", "qdq-int8{profile=sparse-int8}"),
    "INT4 4:8": ("prune48pair", "qdq-int4"),
}
"""Pruning and quantising pass of each form that the table has."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        images: training images, or scenes, that a compression sees.
        calibrate: how many of these prune and calibrate.
        steps, qat_steps, batch: of the float and the quantised training.
        lr, qat_lr: their peak learning rates.
        held, test: held-out and test scenes; of CIFAR-10, all are scored.
    """

    images: int = 3072
    calibrate: int = 512
    steps: int = 200
    qat_steps: int = 100
    batch: int = 64
    lr: float = 1e-3
    qat_lr: float = 1e-4
    held: int = 500
    test: int = 1000


@dataclass(frozen=True)
class System:
    """One stand-in.

    Attributes:
        paper: the system of the paper that it stands for.
        side: of its images, pixels.
        outputs: names of the model's outputs, in order.
        metrics: keys of the scores, and what the table calls them.
        bar: what the float model is to reach in the first of them, 0..1.
        augment: options of both trainings that say what may be done to an image.
        truth: the key of the data options that names what scenes show, and its place beside them; none: CIFAR-10.
        train: from the folder of CIFAR-10 and the cache to the trained model.
    """

    paper: str
    side: int
    outputs: tuple[str, ...]
    metrics: Mapping[str, str]
    bar: float
    augment: str
    truth: tuple[str, str] | None
    train: Callable[[Path, Path], nn.Module]

    def pipeline(self, form: str, size: Size) -> str:
        """The passes of a form."""
        prune, quantise = FORMS[form]
        learn = f"batch={size.batch} {self.augment}"
        steps = (
            f"{prune}{{method=sparsegpt}}",
            f"distill{{{learn} steps={size.steps} lr={size.lr} blockwise=0}}",
            quantise,
            f"qat{{{learn} steps={size.qat_steps} lr={size.qat_lr} vector_lr=1}}",
        )
        return ",".join(steps)

    def data(self, cifar10: Path, folder: Path, part: Part, size: Size) -> DataOptions:
        """The options that open a part of the data, which is made in the cache where it is not there."""
        some: dict[str, Any] = {"samples": size.images, "calibrate": size.calibrate} if part == "train" else {}
        if self.truth is None:
            return _options(_pictures(cifar10, folder, part), **some)
        count = {"train": size.images, "held": size.held, "test": size.test}[part]
        path = scenes.write(folder / "scenes", part, count)
        key, place = self.truth
        return _options(path, fit="stretch", **(some or {key: path / place}))


def _pictures(cifar10: Path, folder: Path, part: Part) -> Path:
    """The file of a part of CIFAR-10; those of the training file are made where they are not there."""
    if part == "test":
        return cifar10 / "test.parquet"
    path = folder / f"cifar10_{part}.parquet"
    if not path.exists():
        whole = pyarrow.parquet.read_table(cifar10 / "train.parquet")
        edge = len(whole) - HELD_OUT
        pyarrow.parquet.write_table(whole.slice(edge) if part == "held" else whole.slice(0, edge), path)
    return path


def _options(path: Path, **more: Any) -> DataOptions:
    return DataOptions.from_values({"path": path, "mean": MEAN, "std": STD, **more})


SYSTEMS: Mapping[str, System] = MappingProxyType(
    {
        "swin": System(
            "Swin", 32, ("logits",), {"top1": "top-1"}, 0.70, "crop=0.6", None, classifier.trained,
        ),
        "detr": System(
            "DETR", scenes.SIDE, ("logits", "boxes", "masks"), {"AP": "box AP", "mask_AP": "mask AP"}, 0.40,
            "crop=1 flip=false", ("annotations", "instances.json"), lambda _, folder: detector.trained(folder),
        ),
        "upernet": System(
            "UPerNet on Swin", scenes.SIDE, ("logits",), {"mIoU": "mean IoU"}, 0.60,
            "crop=1 flip=false", ("masks", "masks"), lambda _, folder: segmenter.trained(folder),
        ),
    }
)  # fmt: skip
