"""How a model is trained: the options that `distill` and `qat` share. No torch here: `plan` and `--help` read it.

Source: docs/method.md, "Losses" and "Learned scales"; the paper fixes alpha, beta, gamma and the gate, the rest is
ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from gpusq_onnx.pipeline.base import PassOptions
from gpusq_onnx.pipeline.schedule import TRAINING

JUDGED = 256  # images on which agreement is reported before and after

Factors = Literal["none", "uniform", "inverse", "raw-inverse", "proportional", "shuffled"]


class ScheduleOptions(PassOptions):
    """How long is trained, and on what of a network when."""

    epochs: int = Field(default=10, ge=1, description="passes over the training images")
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, instead of epochs")
    batch: int = Field(default=40, ge=1, description="images in an optimiser step, over all processes")
    accumulate: int = Field(
        default=1, ge=1, description="parts that a step's images are worked through in: less memory"
    )
    blockwise: float = Field(
        default=0.0, ge=0, le=1, description="share of the steps, the first, with blocks trained apart"
    )
    tokens: float = Field(
        default=1.0, gt=0, le=1, description="share of the patches' tokens that go through the blocks"
    )
    thinned: float = Field(default=0.8, ge=0, le=1, description="share of the steps, the first, with tokens left out")

    @model_validator(mode="after")
    def _divides(self) -> ScheduleOptions:
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate ({self.accumulate}) must divide batch ({self.batch})")
        return self

    @property
    def work(self) -> float:
        """Runs of one image that training on an image takes as long as."""
        return TRAINING * (1 - self.thinned * (1 - self.tokens))


class OptimiserOptions(PassOptions):
    """AdamW and its learning rates."""

    lr: float = Field(default=1e-4, gt=0, description="peak learning rate of weights")
    vector_lr: float = Field(default=1.0, ge=0, description="that of biases, norms and positions, as a share of lr")
    scale_lr: float = Field(default=0.1, ge=0, description="the scales' learning rate, as a share of lr")
    decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay, of weights alone")
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises to lr"
    )
    clip: float = Field(default=1.0, gt=0, description="largest norm of all gradients together")
    average: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the running mean of all weights that is kept; 0: off"
    )


class LossOptions(PassOptions):
    """What the student learns from: weights of the losses, and the tensors that are compared."""

    alpha: float = Field(default=1.0, ge=0, description="weight of the hard-label loss; 0: off")
    beta: float = Field(default=10.0, ge=0, description="weight of the soft-label loss; 0: off")
    gamma: float = Field(default=5.0, ge=0, description="weight of the feature loss; 0: off")
    temperature: float = Field(default=3.0, gt=0, description="of the soft labels")
    gate: bool = Field(
        default=True, description="features count only for images on whose class student and teacher agree"
    )
    labels: bool = Field(default=True, description="take the data's labels as hard labels, where it has them")
    features: Literal["stages", "blocks"] = Field(
        default="stages", description="compare the last block of each stage, or all"
    )
    reduce: Literal["sum", "mean"] = Field(default="sum", description="of the compared maps' losses")
    maps: list[str] = Field(default=[], description="tensors to compare instead, by name")
    feature_loss: Literal["normalised", "plain"] = Field(
        default="normalised", description="squared error over the map's own"
    )
    bound: float = Field(
        default=0.0, ge=0, description="in a map's root mean squares: what is above counts as that; 0: off"
    )

    @model_validator(mode="after")
    def _weighs(self) -> LossOptions:
        if not (self.alpha or self.beta or self.gamma):
            raise ValueError("alpha, beta and gamma are all 0: nothing to learn from")
        return self

    @property
    def takes_labels(self) -> bool:
        """Whether the data's labels are learned from, where it has them."""
        return self.labels and self.alpha > 0


class AugmentationOptions(PassOptions):
    """How images look from one epoch to the next."""

    crop: float = Field(default=0.35, gt=0, le=1, description="least share of an image in a random crop; 1: no crops")
    flip: bool = Field(default=True, description="mirror every other image")
    jitter: float = Field(default=0.0, ge=0, le=1, description="strength of random brightness, contrast and saturation")
    mix: Literal["none", "mixup", "cutmix", "both"] = Field(
        default="none", description="blend or patch pairs of images"
    )
    mixed: float = Field(default=0.5, ge=0, le=1, description="share of the pairs that is mixed")

    @property
    def varies(self) -> bool:
        """Whether an image looks different each time."""
        return self.crop < 1 or self.flip or self.jitter > 0 or self.mix != "none"


class ArithmeticOptions(PassOptions):
    """Where and how precisely is computed."""

    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="auto: bf16 where the hardware has it"
    )
    device: Literal["auto", "cpu"] = Field(default="auto", description="auto: what accelerate finds")


class TrainingOptions(ArithmeticOptions, AugmentationOptions, LossOptions, OptimiserOptions, ScheduleOptions):
    """Options of every training pass."""

    teacher: Path | None = Field(
        default=None, description="model to learn from; none: the one before this pipeline's edits"
    )

    @property
    def remembers(self) -> bool:
        """Whether the teacher need see an image once only: it always looks the same, with all its tokens."""
        return not self.varies and self.tokens == 1


class LabelFree(TrainingOptions):
    """The losses that did best without labels (docs/benchmarks.md): the defaults; `TrainingOptions` has the paper's."""

    alpha: float = Field(default=0.0, ge=0, description="weight of the hard-label loss; 0: off (paper: 1)")
    beta: float = Field(default=1.0, ge=0, description="weight of the soft-label loss; 0: off (paper: 10)")
    temperature: float = Field(default=1.0, gt=0, description="of the soft labels (3 with beta=10)")
    gate: bool = Field(default=False, description="features count only where student and teacher agree (paper: true)")
    features: Literal["stages", "blocks"] = Field(
        default="blocks", description="compare the end of each stage (paper) or block"
    )
    reduce: Literal["sum", "mean"] = Field(default="mean", description="of the compared maps' losses (paper: sum)")
