"""The shapes that data gives to a model's inputs, for what needs a size where the model leaves it open."""

from __future__ import annotations

from gpusq_onnx.data.source import Source


def sizes_of(source: Source) -> dict[str, tuple[int, ...]]:
    """Shapes of the first batch by input name; empty where there is no sample."""
    first = next(iter(source.batches(1)), None)
    return {} if first is None else {name: tuple(rows.shape) for name, rows in first.feed.items()}
