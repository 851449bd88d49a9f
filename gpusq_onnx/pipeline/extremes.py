"""How large each activation gets over the data, in floating point: what decides whether FP16 can hold it.

Limits: infinities (attention masks) do not count, so a tensor that holds one is judged by its other side.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from gpusq_onnx.data.source import Source
from gpusq_onnx.files import Scratch
from gpusq_onnx.graph.extremes import write_with_extremes
from gpusq_onnx.graph.model import Model
from gpusq_onnx.pipeline.calibrate import BATCH
from gpusq_onnx.pipeline.progress import Progress


def magnitudes(
    model: Model, tensors: Collection[str], source: Source, images: int, progress: Progress
) -> tuple[dict[str, float], int]:
    """The largest finite |x| of each float tensor over about the first `images` samples, and how many were seen."""
    from gpusq_onnx.runtime.ort import Session

    largest = dict.fromkeys(tensors, 0.0)
    seen = 0
    with Scratch() as folder:
        path = folder / "extremes.onnx"
        outputs = write_with_extremes(model, path, tensors)
        session = Session(path)
        progress.start("looking for FP16 overflow", min(len(source), images))
        for batch in source.batches(BATCH):
            found = session.run(batch.feed)
            for name, pair in outputs.items():
                values = np.abs([float(found[end]) for end in pair])
                largest[name] = max(largest[name], float(np.max(values, initial=0.0, where=np.isfinite(values))))
            seen += batch.size
            progress.advance(batch.size)
            if seen >= images:
                break
        progress.finish()
        del session  # it maps the weights from the folder
    return largest, seen
