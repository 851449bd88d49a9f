"""How the class outputs of a student and its teacher are read: as logits, or as probabilities that a graph ends in.

    logits     as they are
    softmax    rows that sum to 1: their logarithms are logits, up to a constant that no softmax sees
    sigmoid    one probability per class: log(p / (1 - p)) are the logits

Limits: values are all there is to see, those of some images; of a sigmoid per class, detectors' queries only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gpusq_onnx.tasks.kinds import Kind, normalised, per_class

Values = Literal["logits", "softmax", "sigmoid"]

_TINY = 1e-37  # below it there are no gradients: 1 / p is no number
_SURE = 1e-7  # of a sigmoid: nearer to 0 or 1 than this, float32 has no 1 - p
_ROUNDING = 0.01  # outside of 0..1, by which a quantised probability may lie there


@dataclass(frozen=True)
class Reading:
    """How one output is read.

    Attributes:
        student, teacher: what the values of each are.
        per_class: every class is a yes or no of its own; else one class of all is named.
    """

    student: Values = "logits"
    teacher: Values = "logits"
    per_class: bool = False


def reading(seen: Tensor, taught: Tensor, kind: Kind) -> Reading:
    """How to read the student's and the teacher's outputs of one kind, from what both say of the same images.

    A student with values in 0..1 is what its teacher is: rounding may have moved its sums away from 1.
    """
    teacher, student = _values(taught, kind), _values(seen, kind)
    if teacher != "logits" and bool(((seen >= -_ROUNDING) & (seen <= 1 + _ROUNDING)).all()):
        student = teacher
    separate = teacher == "sigmoid"
    if kind == "queries" and teacher == "logits":
        separate = per_class(taught.float().cpu().numpy())
    return Reading(student, teacher, separate)


def as_logits(z: Tensor, values: Values) -> Tensor:
    """Class logits of z, which is of these values."""
    if values == "softmax":
        return z.clamp(min=_TINY).log()
    return torch.logit(z, _SURE) if values == "sigmoid" else z


def classes_last(z: Tensor, kind: Kind) -> Tensor:
    """A class output as [B, positions, classes]."""
    if kind == "pixels":
        return z.flatten(2).transpose(1, 2)
    return z.unsqueeze(1) if z.ndim == 2 else z


def _values(z: Tensor, kind: Kind) -> Values:
    rows = classes_last(z, kind).float().cpu().numpy()
    if normalised(rows):
        return "softmax"
    single = kind == "queries" and bool(np.all((rows >= 0) & (rows <= 1)))
    return "sigmoid" if single else "logits"
