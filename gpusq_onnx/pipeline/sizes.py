"""How many bytes the activations of one image are, and how many images' worth fits what one run may hold.

Shapes come from inference; where it knows more than one dimension of a tensor less than it should, one image is run
through the graph with Shape probes and nothing else as outputs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from gpusq_onnx.data.source import Source
from gpusq_onnx.files import Scratch
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.probes import write_probed

BATCH = 4  # images at most: enough to keep two cores busy
BUDGET = 512 << 20  # bytes of activations that one run may hold for us

Shape = Sequence[int | str | None]


def image_bytes(model: Model, tensors: Collection[str], shapes: Mapping[str, Shape], source: Source) -> dict[str, int]:
    """Bytes of each float tensor for one image; for a fixed batch, of the batch."""
    known = {name: shapes.get(name) for name in tensors}  # a dimension that is not known counts as the batch
    unclear = [name for name, shape in known.items() if shape is None or sum(not isinstance(d, int) for d in shape) > 1]
    found = known | (_measured(model, unclear, source) if unclear else {})
    return {name: 4 * math.prod(d for d in shape or () if isinstance(d, int)) for name, shape in found.items()}


def fitting(size: int) -> int:
    """The images of `size` bytes, up to BATCH, that fit the budget; 0: none does."""
    return next((images for images in range(BATCH, 0, -1) if images * size <= BUDGET), 0)


def _measured(model: Model, tensors: Sequence[str], source: Source) -> dict[str, Sequence[int]]:
    from gpusq_onnx.runtime.ort import Session

    with Scratch() as folder:
        path = folder / "shapes.onnx"
        outputs = write_probed(model, path, tensors, ("Shape",))
        session = Session(path, file_order=True)
        for batch in source.batches(1):
            found = session.run(batch.feed)
            del session  # it maps the weights from the folder
            return {name: [int(size) for size in found[output]] for name, (output,) in outputs.items()}
    return {}
