"""How far the outputs of two runs of a model are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.pipeline.outcome import OutputAgreement
from gpusq_onnx.tasks.classification import cosine

Values = NDArray[Any]


def agreement(name: str, plain: Values, default: Values, smooth: bool) -> OutputAgreement:
    """How near an output is to itself as every node is written; `smooth`: no choice lies before it."""
    relative, judged = distance(plain, default), smooth and plain.dtype.kind == "f"
    if plain.shape != default.shape:
        return OutputAgreement(name, None, None, judged, finite=True, same_shape=False)
    alike = None if relative is None else float(cosine(plain.reshape(1, -1), default.reshape(1, -1))[0])
    alike = alike if alike is not None and np.isfinite(alike) else None
    finite = not (np.isfinite(plain) & ~np.isfinite(default)).any()
    return OutputAgreement(name, relative, alike, judged, finite, same_shape=True)


def distance_text(one: OutputAgreement) -> str:
    """How far an output is off."""
    if one.relative is None or not one.finite:
        return "NaN or infinity" if one.same_shape else "another shape"
    return f"{one.relative:.3g}"


def within(one: OutputAgreement, bound: float) -> bool:
    """Whether an output is as near as `bound` of its norm, where it is judged, and no number was lost."""
    near = one.same_shape and (one.relative is None or one.relative <= bound)
    return one.finite and (near or not one.judged)


def distance(plain: Values, default: Values) -> float | None:
    """|default - plain| / |plain| over what is finite in both; None where shapes differ or nothing is."""
    if plain.shape != default.shape:
        return None
    finite = np.isfinite(plain) & np.isfinite(default)
    a, b = plain[finite].astype(np.float64), default[finite].astype(np.float64)
    if not a.size:
        return None
    size, difference = float(np.linalg.norm(a)), float(np.linalg.norm(b - a))
    return difference / size if size else difference
