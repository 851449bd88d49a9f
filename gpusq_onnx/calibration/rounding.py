"""Round weights by what that does to their layers' outputs, on calibration data.

The model, with its Q/DQ pairs where it has them, is walked through. Each weight is rounded on the inputs that it will
see, after all rounding before it (`quant.rounding`), with scales chosen on these inputs (`quant.clipping`). Its bias
absorbs the mean error that this leaves.

Limits: float weights, before their pairs where there are any, which nobody else reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.calibration.walk import Walk, observable
from gpusq_onnx.graph.label import settle
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.codes import set_weight_scales
from gpusq_onnx.graph.qdq.rescale import own_bias, shift_bias
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.base import Context
from gpusq_onnx.pipeline.parallel import share
from gpusq_onnx.pipeline.schedule import SECOND_ORDER
from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.formats import LOW_BITS, Format
from gpusq_onnx.quant.rounding import round_to_grid
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.sparsity.gram import Gram
from gpusq_onnx.sums import matvec

Rounding = Literal["auto", "nearest", "gptq"]
ROUNDING = "of weights; gptq: by the output error; auto: that for 4 bits where there is data"


def rounding_of(chosen: Rounding, site: Site, fmt: Format, data: bool) -> Literal["nearest", "gptq"]:
    """How a site's weight is rounded, "nearest" or "gptq", where there is calibration data or not."""
    by_output = rounded_by_output(chosen, fmt, data)
    return "gptq" if by_output and observable(site) and not site.conflicts else "nearest"


def rounded_by_output(chosen: Rounding, fmt: Format, data: bool) -> bool:
    """Whether weights of the format are rounded by the output error, where they can be."""
    if chosen == "auto":
        return data and fmt.bits <= LOW_BITS and not fmt.grid
    return chosen == "gptq"


class WeightGrid(NamedTuple):
    """Where a weight is to lie.

    Attributes:
        site: an `observable` one without conflicts; its weight is float, before its Q/DQ pair if there is one.
        format: of the codes.
        scales: of w[out, k].
        search: whether better scales of that kind may be chosen.
    """

    site: Site
    format: Format
    scales: Scales
    search: bool = True


def round_weights(
    model: Model, grids: Iterable[WeightGrid], context: Context, *, correct: bool = True
) -> dict[str, Scales]:
    """Store weights on their grids; returns the scales by site, which the pairs have as well.

    Args:
        model: with Q/DQ pairs, or where weights alone will be quantised, still without.
        grids: of sites of this model.
        context: its source is what the model is run on.
        correct: whether biases absorb the mean output error.
    """
    assert context.source is not None
    settle(model)  # the opset that runs its blocks
    by_name = {grid.site.name: grid for grid in grids}
    found = {}
    context.progress.start("rounding weights", len(by_name), SECOND_ORDER * len(context.source))
    with Walk(model, [grid.site for grid in by_name.values()], context.source) as walk:
        context.findings["images"] = walk.images
        for site, gram, _ in walk:
            found[site.name] = _round(by_name[site.name], gram, correct)
            context.progress.advance()
    context.progress.finish()
    return found


def _round(grid: WeightGrid, gram: Gram, correct: bool) -> Scales:
    site = grid.site
    w, bias = site.read().astype(np.float32), own_bias(site) if correct else None
    scales = _scales(w, grid, gram)
    if site.quantised:
        scales = set_weight_scales(site, scales)
    rounded = round_to_grid(w, scales, grid.format, gram, centred=bias is not None, each=share)
    if bias is not None:
        shift_bias(bias, matvec(w - rounded, gram.mean))
    site.write(rounded.astype(site.weight.dtype))
    return scales


def _scales(w: NDArray[np.float32], grid: WeightGrid, gram: Gram) -> Scales:
    if not grid.search:
        return grid.scales
    given = grid.scales
    importance = np.diag(gram.sums(centred=False)) / max(1, gram.rows)
    values = weight_scales(w, grid.format, block=given.block, importance=importance)
    return Scales(values, given.axis, given.block)
