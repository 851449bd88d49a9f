"""What a learning pass measured: its fields are keys of the pass's findings in a report, but those that are None.

curve       rows {"step": int, "loss": float, ...}, in order: the training curves
masks       how many weights follow a pattern, and how often that was looked at
agreement   share of the images on which student and teacher make the same first choice
soft        the distance of their outputs
distances   {feature map: D_i}        factors   {feature map: w_i}
movement    {scale: (before, after)}, of a weight the mean over its channels
learned     how many initializers changed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class BeforeAfter:
    """A number before and after."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class AgreementChange(BeforeAfter):
    """A share of so many images."""

    images: int


@dataclass(frozen=True)
class MaskChecks:
    """How many weights follow a pattern, and how often that was looked at."""

    weights: int
    checks: int


@dataclass(frozen=True)
class Training:
    """How it was trained."""

    steps: int
    batch: int
    processes: int
    bf16: bool
    teacher_remembered: bool


@dataclass(frozen=True)
class Learned:
    """See the module's text."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    masks: MaskChecks | None = None
    agreement: AgreementChange | None = None
    soft: BeforeAfter | None = None
    training: Training | None = None
    factors: dict[str, float] | None = None
    distances: dict[str, float] | None = None
    movement: dict[str, tuple[float, float]] | None = None
    learned: int | None = None

    @classmethod
    def of(cls, findings: Mapping[str, Any]) -> Learned:
        """Read from a step's findings. Raises ValueError for values of other types."""
        return _reader().validate_python(findings)

    def findings(self) -> dict[str, Any]:
        """As plain values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@cache
def _reader() -> TypeAdapter[Learned]:
    return TypeAdapter(Learned)
