"""AdamW and its parameter groups, and how the learning rate goes.

    weights            lr, weight decay
    biases, norms, positions   lr x vector_lr, no decay
    scales             lr x scale_lr, no decay

    rate(t)    rises linearly over the warm-up, then falls by a cosine to 1 % of its peak at the last step

Source: docs/method.md, "Learned scales" (scales 10x smaller, decay-free; cosine to 1 %); beta2 = 0.99: runs of hundreds
of steps are too short for 0.999.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from gpusq_onnx.learn.settings import OptimiserOptions

BETAS = (0.9, 0.99)
FINAL = 0.01


def optimiser(
    named: Iterable[tuple[str, nn.Parameter]], roles: Mapping[str, str], settings: OptimiserOptions
) -> torch.optim.AdamW:
    """AdamW over the named parameters, in the groups above; each group's `share` is of the common rate."""
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "scale": [], "other": []}
    for name, parameter in named:
        role = roles[name]
        groups[role if role in groups else "other"].append(parameter)
    share = {"weight": 1.0, "scale": settings.scale_lr, "other": settings.vector_lr}
    decay = {"weight": settings.decay, "scale": 0.0, "other": 0.0}
    made = [
        {"params": members, "share": share[role], "weight_decay": decay[role], "role": role}
        for role, members in groups.items()
        if members
    ]
    return torch.optim.AdamW(made, lr=settings.lr, betas=BETAS, fused=True)


def rate(step: int, steps: int, settings: OptimiserOptions) -> float:
    """The learning rate of step 0 to steps - 1, as a share of its peak."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    gone = (step - warm) / max(1, steps - 1 - warm)
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * gone)) / 2


def set_rate(made: torch.optim.Optimizer, value: float) -> None:
    """Give every group its share of the rate `value`."""
    for group in made.param_groups:
        group["lr"] = value * group["share"]
