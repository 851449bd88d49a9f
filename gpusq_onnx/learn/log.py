"""Logs of a training run: one JSON object a line, and TensorBoard's files where it is installed.

    log.jsonl     step, epoch, lr, loss, hard, soft, feature.0 ..., agree, norm, images_per_second

A run that goes on from a checkpoint cuts off the lines after it first, so that each step is there once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from gpusq_onnx.files import atomic_write
from gpusq_onnx.parsing import parse_json, read_bytes

NAME = "log.jsonl"
NO_TENSORBOARD = "no TensorBoard log: pip install tensorboard writes one beside log.jsonl"


def _step(line: bytes) -> float:
    """The step that a line is about; past every other for a line that is not ours."""
    try:
        step = parse_json(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf
    return step if isinstance(step, int) else math.inf


class Log:
    """The logs in `folder`, from step `start` on; None writes nothing."""

    def __init__(self, folder: Path | None, start: int) -> None:
        self.note = ""
        self._path = None if folder is None else folder / NAME
        self._board: Any = None
        if folder is None or self._path is None:
            return
        kept = []
        if self._path.exists():
            lines = read_bytes(self._path).splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and _step(line) <= start]
        with atomic_write(self._path) as (file,):
            file.write(b"".join(kept))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.note = NO_TENSORBOARD
            return
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """Add one row; it is on the disk when this returns."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(row["step"]))

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End TensorBoard's file; a log without a line, of a run that ended before it began, goes."""
        if self._board is not None:
            self._board.close()
        if self._path is not None and self._path.exists() and not self._path.stat().st_size:
            self._path.unlink()
