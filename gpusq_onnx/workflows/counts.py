"""Counts as callers of the API give them; the command line has ranges of its own."""

from __future__ import annotations

from gpusq_onnx.errors import UsageError


def require_counts(**counts: int) -> None:
    """Raise UsageError for an argument below 1, by its name."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"there are not enough {name}", expected="1 or more", found=str(count))
