"""Scales in the graph, without torch: weight scales chosen again on the kept weights, and where all scales are.

    weights    one scale an output channel (or one in all, or in blocks, of two levels where the format has them), the
               clip of least squared error over the non-zero weights

Source: docs/method.md, "Learned scales" (weights from the MSE-best clip over the non-zero weights). Limits: float
weights before a Q/DQ pair. Left as they are: a pair whose Q and DQ read different scale tensors, or along another axis,
and a weight that is on its grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import QDQ
from gpusq_onnx.graph.qdq.codes import set_weight_scales, weight_format, weight_scales_of
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.dynamic import scales_for
from gpusq_onnx.quant.formats import clamp_scale, fake_quantize


def recalibrate(sites: Iterable[Site]) -> int:
    """Choose the weight scales of quantised sites again; returns how many tensors of scales were set."""
    done: set[str] = set()
    for site in sites:
        pair = {node.op: node for node in site.trail if node.op in QDQ}
        if site.quantised != "qdq" or len(pair) != 2:
            continue
        scale, other = (node.inputs[1] for node in pair.values())
        fmt = weight_format(site)
        if scale is not other or fmt is None or scale.name in done:
            continue
        w, scales = np.asarray(site.read(), np.float32), weight_scales_of(site)
        if np.array_equal(fake_quantize(w, scales, fmt), w):
            continue
        if scales.block:
            set_weight_scales(site, scales_for(w, fmt, block=scales.block))
            done.add(str(scale.name))
            continue
        stored = values_of(scale)
        if stored.size not in (1, site.out) or (stored.size == 1) != (stored.ndim == 0 or site.out == 1):
            continue
        found = weight_scales(w.reshape(1, -1) if stored.size == 1 else w, fmt)
        scale.values = clamp_scale(found, stored.dtype).astype(stored.dtype).reshape(stored.shape)
        done.add(str(scale.name))
    return len(done)


def scale_values(model: Model) -> dict[str, float]:
    """The scales of all Q/DQ pairs by initializer; of a tensor of scales its mean."""
    found: dict[str, float] = {}
    for node in model.graph.nodes:
        if node.op in QDQ and hasattr(node.inputs[1], "values"):
            values: NDArray[Any] = values_of(node.inputs[1])
            found[str(node.inputs[1].name)] = float(np.mean(values, dtype=np.float64))
    return found
