"""The shapes that data gives to a model's inputs, for what needs a size where the model leaves it open."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Described, Source


def sizes_of(source: Source) -> dict[str, tuple[int, ...]]:
    """Shapes of the first batch by input name; empty where there is no sample."""
    first = next(iter(source.batches(1)), None)
    return {} if first is None else {name: tuple(rows.shape) for name, rows in first.feed.items()}


def sizes_for(inputs: Sequence[Described], options: DataOptions) -> dict[str, tuple[int, ...]]:
    """The same for data that is not open yet: of images, the crop.

    Raises:
        UsageError, UnsupportedDataError: as `open_source`; without a crop where the model takes any size.
    """
    return sizes_of(open_source(options, inputs))
