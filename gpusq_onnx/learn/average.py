"""A running mean of all weights, which is what is kept at the end: one long step less noisy than the last step's.

    mean <- d mean + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t))

Source: Polyak averaging, torch's own, with the usual warm-up of its decay. Zeros stay zeros; scales stay positive.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The running mean of `parameters`; off (and without memory) where decay is 0."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values: list[Tensor] = []
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin with the parameters as they are."""
        self.values = [parameter.detach().clone() for parameter in self._parameters] if self._decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step 0, 1, ..."""
        if self.values:
            blend = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
            blend(self.values, [p.detach() for p in self._parameters], None)

    @torch.no_grad()
    def store(self) -> None:
        """Make the mean the parameters' values."""
        for parameter, value in zip(self._parameters, self.values, strict=False):
            parameter.copy_(value)
