"""How many bytes the activations of one image are, and how many images' worth fits what one run may hold.

Shapes come from inference; where it knows more than one dimension of a tensor less than it should, one image is run
through the graph with Shape probes and nothing else as outputs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from gpusq_onnx.data.source import Source
from gpusq_onnx.graph.model import Model
from gpusq_onnx.runtime.observed import shapes_in_a_run
from gpusq_onnx.runtime.trial import Trials

BATCH = 4  # images at most: enough to keep two cores busy
BUDGET = 512 << 20  # bytes of activations that one run may hold for us

Shape = Sequence[int | str | None]


def image_bytes(model: Model, tensors: Collection[str], shapes: Mapping[str, Shape], source: Source) -> dict[str, int]:
    """Bytes of each float tensor for one image; for a fixed batch, of the batch."""
    known = {name: shapes.get(name) for name in tensors}  # a dimension that is not known counts as the batch
    unclear = [name for name, shape in known.items() if shape is None or sum(not isinstance(d, int) for d in shape) > 1]
    batch = next(iter(source.batches(1)), None) if unclear else None
    found = dict(known)
    if batch is not None:
        with Trials() as trials:
            found |= shapes_in_a_run(model, unclear, trials.with_feed(batch.feed))
    return {name: 4 * math.prod(d for d in shape or () if isinstance(d, int)) for name, shape in found.items()}


def fitting(size: int) -> int:
    """The images of `size` bytes, up to BATCH, that fit the budget; 0: none does."""
    return next((images for images in range(BATCH, 0, -1) if images * size <= BUDGET), 0)
