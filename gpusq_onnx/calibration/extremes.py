"""How large each activation gets over the data, in floating point: what decides whether FP16 can hold it.

Of the tensors nothing leaves the runtime but their extremes, and each is gone when its last reader has run: a batch has
as many images as leave room for a few of the largest tensor.

Limits: infinities (attention masks) do not count, so a tensor that holds one is judged by its other side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from gpusq_onnx.calibration.image_bytes import Shape, fitting, image_bytes
from gpusq_onnx.data.source import Source
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.probes import write_probed
from gpusq_onnx.graph.qdq.simulated import runs_as
from gpusq_onnx.progress import Progress
from gpusq_onnx.scratch import Scratch

_ALIVE = 8  # of the largest tensor, at a time, its copies within onnxruntime's kernels and arena included


def magnitudes(
    model: Model,
    tensors: Collection[str],
    shapes: Mapping[str, Shape],
    source: Source,
    images: int,
    progress: Progress,
    masked: Collection[str] = (),
) -> tuple[dict[str, float], int]:
    """The largest finite |x| of each float tensor over about the first `images` samples, and how many were seen.

    Args:
        masked: tensors of which only what is above zero counts.
    """
    from gpusq_onnx.runtime.ort import Session

    largest = dict.fromkeys(tensors, 0.0)
    seen = 0
    largest_tensor = max(image_bytes(model, tensors, shapes, source).values(), default=0)
    images_a_run = max(1, fitting(_ALIVE * largest_tensor))
    with Scratch() as folder:
        path = folder / "extremes.onnx"
        outputs = write_probed(model, path, tensors, ("ReduceMin", "ReduceMax"))
        session = Session(path, file_order=True, exact_qdq=runs_as(model) == "exact")
        count = min(len(source), images)
        progress.start("looking for FP16 overflow", count, count)
        for batch in source.batches(images_a_run):
            found = session.run(batch.feed)
            for name, pair in outputs.items():
                ends = np.array([float(found[end]) for end in pair])
                values = np.maximum(ends, 0) if name in masked else np.abs(ends)
                largest[name] = max(largest[name], float(np.max(values, initial=0.0, where=np.isfinite(values))))
            seen += batch.size
            progress.advance(batch.size)
            if seen >= images:
                break
        progress.finish()
        del session  # it maps the weights from the folder
    return largest, seen
