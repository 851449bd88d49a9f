"""What a training run went through: plain values, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StudentComparison:
    """Student against teacher over `images` images as they are (`learn.compare`); D_i in the order of the maps."""

    images: int
    agreement: float
    soft: float
    distances: tuple[float, ...]


@dataclass(kw_only=True)
class History:
    """What happened.

    Attributes:
        curve: one row a round: step, phase (where there are several), lr, loss, hard, soft, feature.i, agree, norm.
        before, after: student against teacher on images as they are.
        steps, batch, processes, bf16: how it was trained.
        masks, checks: weights with a zero pattern, and how often all were verified.
        remembered: whether the teacher looked at each image once only.
        notes: sentences for the user.
    """

    before: StudentComparison
    after: StudentComparison
    steps: int
    batch: int
    processes: int
    bf16: bool
    masks: int
    checks: int
    remembered: bool
    curve: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
