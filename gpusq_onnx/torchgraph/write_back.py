"""What was learned goes back into the graph it came from: values only, in the names, shapes and types that were there.

An initializer whose bytes would not change is not touched, so that a network that learned nothing leaves the file as it
was. Scales are raised to the floor that the forward pass used (`quantiser.floor_of`).

Source: docs/torchgraph.md, fact 10. Limit: a model with the initializers of the one that was converted, of the same
shapes.
"""

from __future__ import annotations

import numpy as np

from gpusq_onnx.errors import InvariantError, UnsupportedModelError
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.qdq.codes import clip_bounds
from gpusq_onnx.torchgraph.network import Network
from gpusq_onnx.torchgraph.quantiser import floor_of


def write_back(network: Network, model: Model) -> list[str]:
    """Store the network's parameters in `model`; returns the names of the initializers whose values changed.

    Nothing is stored unless everything can be.

    Raises:
        UnsupportedModelError: the model lacks an initializer, or has it in another shape.
        InvariantError: a parameter is not finite.
    """
    constants = {constant.name: constant for constant in model.constants()}
    changed = {}
    for name, parameter in network.named_parameters():
        initializer = network.initializers[name]
        constant = constants.get(initializer)
        shape = tuple(parameter.shape)
        if constant is None or tuple(constant.shape) != shape:
            raise UnsupportedModelError(
                f"initializer {initializer!r} is not the one that was trained",
                expected=f"shape {list(shape)}",
                found="none" if constant is None else f"shape {list(constant.shape)}",
                hint="write back into the model that was converted, or into a copy of it",
            )
        learned = parameter.detach().cpu().numpy()
        if not np.isfinite(learned).all():
            raise InvariantError(f"training left {initializer!r} with values that are not finite")
        stored = values_of(constant)
        if network.roles[name] == "scale":
            learned = np.maximum(learned, np.float32(floor_of(stored.dtype)))
        with np.errstate(over="ignore"):  # found below, with its name
            written = np.asarray(learned.astype(stored.dtype), order="C")  # ascontiguousarray makes vectors of scalars
        if not np.isfinite(written.astype(np.float32)).all():
            raise InvariantError(f"{initializer!r} has grown past what {stored.dtype.name} holds")
        if written.tobytes() != stored.tobytes():
            changed[initializer] = written
    for initializer, values in changed.items():
        constants[initializer].values = values
    for quantiser in (q for q in network.quantisers if q.bounds):  # a Clip to the ends of a grid follows its scale
        ends = clip_bounds(values_of(constants[quantiser.scale]), quantiser.qmin, quantiser.qmax)
        for bound, values in zip(quantiser.bounds, ends, strict=False):
            constants[bound].values = values
    return sorted(changed)
