"""One training loop for every stand-in, which goes on where it was stopped.

AdamW (weight decay 0.05) under one cycle: the learning rate rises over the first tenth of the steps and falls as a
cosine to 1 %. Each epoch draws from a generator of its own, seeded by the epoch, and ends in a checkpoint (model and
optimiser, replaced whole), so a run that was stopped loses an epoch at most and ends in the weights that one run gives.

Deterministic on one machine with one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Batches = Callable[[torch.Generator], Iterator[tuple[Any, ...]]]
"""One epoch's batches."""

Loss = Callable[..., Tensor]
"""Of the model and the parts of a batch."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: epochs of `steps` batches, peak learning rate, seed."""

    epochs: int
    steps: int
    lr: float
    seed: int = 0


def train(model: nn.Module, batches: Batches, loss_of: Loss, recipe: Recipe, checkpoint: Path) -> nn.Module:
    """The model, trained, in evaluation mode; a line an epoch is printed.

    Args:
        checkpoint: the file that is written after each epoch and read where it is there.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["epochs"]
    model.train()
    for epoch in range(done, recipe.epochs):
        began, total = time.perf_counter(), 0.0
        generator = torch.Generator().manual_seed(recipe.seed * 10_000 + epoch)
        for number, batch in enumerate(batches(generator)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * one_cycle((epoch * recipe.steps + number) / (recipe.epochs * recipe.steps))
            total += step(model, optimizer, loss_of, batch)
        took = time.perf_counter() - began
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {total / recipe.steps:.3f}, {took:.0f} s", flush=True)
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}, partial
        )  # fmt: skip
        partial.replace(checkpoint)
    return model.eval()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Loss, batch: tuple[Any, ...]) -> float:
    """One step; the loss before it."""
    optimizer.zero_grad()
    loss = loss_of(model, *batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def one_cycle(share: float, rise: float = 0.1, floor: float = 0.01) -> float:
    """The learning rate's factor after a share (0..1) of the steps."""
    if share < rise:
        return floor + (1 - floor) * share / rise
    return floor + (1 - floor) * (1 + math.cos(math.pi * (share - rise) / (1 - rise))) / 2
