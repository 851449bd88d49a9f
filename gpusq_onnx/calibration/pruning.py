"""Prune one weight by second-order error, with the inputs that the part already pruned gives it.

`prune` writes what this makes; `permute` looks at the inputs that come after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.qdq.rescale import own_bias, shift_bias
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.parallel import share
from gpusq_onnx.sparsity import magnitude, sparsegpt
from gpusq_onnx.sparsity.gram import LARGEST, Gram
from gpusq_onnx.sparsity.patterns import Pattern
from gpusq_onnx.sparsity.target import WeightTarget


def prune_site(
    site: Site,
    pattern: Pattern,
    gram: Gram,
    target: WeightTarget | None = None,
    *,
    damping: float = 0.01,
    bias_correction: bool = True,
    order: NDArray[np.intp] | None = None,
) -> float:
    """Rewrite a site's weight by SparseGPT, and its own bias so that the mean output stays.

    Args:
        gram: of the site's inputs.
        target: what the site should do on them; None: what its weight does.
        damping: see `sparsegpt.prune`.
        bias_correction: let the bias absorb the mean error.
        order: of the reduction axis, [k]: groups of the pattern are order[0:group] and so on; None: as it lies.

    Returns:
        The share of the weight's energy that is left.

    Raises:
        UnsupportedModelError: the weight is too large to be squared; names the node.
    """
    w = squarable(site)
    bias = own_bias(site) if bias_correction else None
    try:
        aim = w if target is None else target.weight(centred=bias is not None).astype(w.dtype)
    except np.linalg.LinAlgError as error:
        raise UnsupportedModelError(
            f"what {site.name!r} should give cannot be solved for: the dense model is infinitely far",
            where=site.place,
            hint="prune24{aim=layer}",
        ) from error
    pruned = sparsegpt.prune(aim, gram, pattern, damping=damping, centred=bias is not None, order=order, each=share)
    if bias is not None:
        shift_bias(bias, sparsegpt.bias_correction(w, pruned, gram.mean) + (0.0 if target is None else target.mean))
    site.write(pruned)
    return magnitude.energy_kept(w, pruned)


def squarable(site: Site) -> NDArray[Any]:
    """A site's weight, [out, k].

    Raises:
        UnsupportedModelError: it is too large to be squared; names the node.
    """
    w = site.read()
    largest = float(np.abs(w).max(initial=0))
    if largest > LARGEST:
        raise UnsupportedModelError(
            f"the weight {site.name!r} is too large to be judged: its squares overflow",
            where=site.place,
            expected=f"values below {LARGEST:g}",
            found=f"{largest:g}",
            hint="the export or the training went wrong: check the original checkpoint",
        )
    return w
