"""Checkpoints: one safetensors file that is replaced as a whole, from which training goes on bit for bit.

The tensors are parameters, optimiser moments, running mean and the best weights so far; the header's metadata holds the
step and all else as JSON (State). There is no generator's state: every random choice is a function of seed, epoch and
image. A key tells to which run the file belongs; names, shapes and values are checked all the same.

Limits: bit for bit on the same machine and library versions, with as many threads and processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors
import torch
from pydantic import Field, TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import staged
from gpusq_onnx.learn.guard import GuardState
from gpusq_onnx.parsing import parse_json

NAME = "checkpoint.safetensors"
BEST = "best.safetensors"  # weights by initializer, where a run fails


@dataclass(frozen=True)
class State:
    """Where a run is: its next step, the rows of the curve and the notes so far, and how often masks were checked."""

    step: Annotated[int, Field(ge=0)]
    guard: GuardState
    curve: list[dict[str, int | float]]
    notes: list[str]
    checks: Annotated[int, Field(ge=0)]


STATES = TypeAdapter(State)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and plain values."""

    tensors: Mapping[str, Tensor]
    state: State


def save(folder: Path, key: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in `folder`; whenever the process ends, the old or the new one is there, whole."""
    write(folder / NAME, checkpoint.tensors, {"key": key, "state": STATES.dump_json(checkpoint.state).decode()})


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors into a safetensors file, all or nothing."""
    with staged() as staging:
        held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(held, staging.place(path), metadata)


def load(
    folder: Path, key: str, like: Mapping[str, Tensor], whole: Sequence[Mapping[str, Tensor]] = (), steps: int = 0
) -> Checkpoint | None:
    """The checkpoint in `folder`, None where there is none, or one of another run.

    Args:
        folder: the run's.
        key: the run's.
        like: tensors that it must hold, as they are in this run: of these shapes, and on this device.
        whole: groups of tensors, each there as a whole or not at all.
        steps: all steps of the run.

    Raises:
        UsageError: what is there is no checkpoint, or none that such a run writes.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("key") != key:
                return None
            state = STATES.validate_python(parse_json(header["state"]))
            if state.step > steps:
                raise ValueError(f"it is at step {state.step} of {steps}")
            held = set(file.keys())
            wanted = dict(like)
            for group in whole:
                wanted.update(group if held & group.keys() else {})
            return Checkpoint({name: _fitting(name, file.get_tensor(name), own) for name, own in wanted.items()}, state)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        hint = f"delete {folder} to begin anew, or give another output"
        raise UsageError("the checkpoint cannot be read", where=str(path), found=str(error), hint=hint) from error


def _fitting(name: str, found: Tensor, own: Tensor) -> Tensor:
    if found.shape != own.shape or not found.is_floating_point():
        raise ValueError(f"{name!r} is {found.dtype} {list(found.shape)}, and not {own.dtype} {list(own.shape)}")
    return found.to(own.device)


def key_of(values: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """SHA-256 of what makes a run this run: plain values, and the tensors that it starts from."""
    whole = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for tensor in tensors:
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
