"""Watches the loss: rolls back what is not a number, stops what rises, keeps the best weights.

    not finite   back to the best weights, the learning rate halved, the optimiser's moments forgotten; after the third
                 time the pass fails
    rising       the mean of the last WINDOW rounds above RISE times the least such mean: back to the best, and stop

"Best" are the weights at the least mean of WINDOW rounds (of fewer, at the beginning).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

WINDOW = 5
RISE = 1.5
RETRIES = 3

Verdict = Literal["go on", "roll back", "stop", "fail"]


@dataclass(frozen=True)
class GuardState:
    """All of a guard but the weights; `loss` is None before the first round that was judged."""

    loss: float | None
    step: Annotated[int, Field(ge=0)]
    rollbacks: Annotated[int, Field(ge=0, le=RETRIES)]
    recent: Annotated[list[float], Field(max_length=WINDOW)]


class Guard:
    """Judges the loss of each round; holds one copy of the parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self.best = [parameter.detach().clone() for parameter in parameters]
        self.best_loss, self.best_step = math.inf, 0
        self.rollbacks = 0
        self._recent: list[float] = []

    @property
    def rate(self) -> float:
        """What the learning rate is multiplied with."""
        return float(0.5**self.rollbacks)

    @torch.no_grad()
    def judge(self, loss: float, norm: float, step: int) -> Verdict:
        """After a round that ended before `step`: its mean loss and mean gradient norm."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.rollbacks += 1
            self._recent = []
            self.restore()
            return "fail" if self.rollbacks > RETRIES else "roll back"
        self._recent = [*self._recent, loss][-WINDOW:]
        mean = sum(self._recent) / len(self._recent)
        if mean <= self.best_loss:
            self.best_loss, self.best_step = mean, step
            torch._foreach_copy_(self.best, [parameter.detach() for parameter in self._parameters])
        elif len(self._recent) == WINDOW and mean > RISE * self.best_loss:
            self.restore()
            return "stop"
        return "go on"

    def forget(self) -> None:
        """Judge anew from here on: the losses to come are of another kind."""
        self.best_loss, self._recent = math.inf, []

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters the best weights."""
        for parameter, value in zip(self._parameters, self.best, strict=True):
            parameter.copy_(value)

    def state(self) -> GuardState:
        """All but the weights."""
        loss = self.best_loss if math.isfinite(self.best_loss) else None
        return GuardState(loss, self.best_step, self.rollbacks, list(self._recent))

    def load(self, state: GuardState) -> None:
        """Go on from `state`; the best weights are given back by whoever kept them."""
        self.best_loss = math.inf if state.loss is None else state.loss
        self.best_step, self.rollbacks, self._recent = state.step, state.rollbacks, list(state.recent)
