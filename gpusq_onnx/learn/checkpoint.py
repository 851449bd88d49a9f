"""Checkpoints: one safetensors file that is replaced as a whole, from which training goes on bit for bit.

The tensors are parameters, optimiser moments, running mean and the best weights so far; the header's metadata holds the
step and all else as JSON. There is no generator's state: every random choice is a function of seed, epoch and image. A
key tells to which run the file belongs.

Limits: bit for bit on the same machine and library versions, with as many threads and processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import staged
from gpusq_onnx.parsing import parse_json

NAME = "checkpoint.safetensors"
BEST = "best.safetensors"  # weights by initializer, where a run fails


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and plain values."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(folder: Path, key: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in `folder`; whenever the process ends, the old or the new one is there, whole."""
    write(folder / NAME, checkpoint.tensors, {"key": key, "state": json.dumps(checkpoint.state)})


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors into a safetensors file, all or nothing."""
    with staged() as staging:
        held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(held, staging.place(path), metadata)


def load(folder: Path, key: str, device: torch.device) -> Checkpoint | None:
    """The checkpoint in `folder`, None where there is none, or one of another run.

    Raises:
        UsageError: what is there is no checkpoint.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("key") != key:
                return None
            names = file.keys()
            state = parse_json(header["state"])
            if not isinstance(state, dict):
                raise ValueError("its state is no JSON object")
            return Checkpoint({name: file.get_tensor(name) for name in names}, state)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        hint = f"delete {folder} to begin anew, or give another output"
        raise UsageError("the checkpoint cannot be read", where=str(path), found=str(error), hint=hint) from error


def key_of(values: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """SHA-256 of what makes a run this run: plain values, and the tensors that it starts from."""
    whole = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for tensor in tensors:
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
