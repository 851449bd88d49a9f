"""The targets by name, and what a process imports before it forks for them."""

from __future__ import annotations

from tools.fuzz import containers, data, models, options, reports
from tools.fuzz.arena import Target

_TARGETS = (models.TARGET, options.TARGET, data.TARGET, containers.TARGET, reports.TARGET)
ALL: dict[str, Target] = {target.name: target for target in _TARGETS}


def warm_up() -> None:
    """Import what the cases need, once."""
    import onnx_graphsurgeon  # noqa: F401
    import onnxruntime  # noqa: F401
    import polygraphy.backend.onnxrt
    import polygraphy.comparator  # noqa: F401
