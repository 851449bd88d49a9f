"""The targets by name, and what a process imports before it forks for them."""

from __future__ import annotations

from tools.fuzz import containers, data, kills, models, options, reports
from tools.fuzz.arena import Target

_TARGETS = (models.TARGET, models.PASSES, options.TARGET, data.TARGET, containers.TARGET, reports.TARGET, kills.TARGET)
ALL: dict[str, Target] = {target.name: target for target in _TARGETS}


def warm_up() -> None:
    """Import what the cases need, once."""
    import onnx_graphsurgeon  # noqa: F401
    import onnxruntime  # noqa: F401
    import polygraphy.backend.onnxrt
    import polygraphy.comparator  # noqa: F401

    import gpusq_onnx.calibration.activations
    import gpusq_onnx.calibration.extremes
    import gpusq_onnx.calibration.prefix
    import gpusq_onnx.data.arrays
    import gpusq_onnx.data.folder
    import gpusq_onnx.data.parquet
    import gpusq_onnx.data.script
    import gpusq_onnx.data.synthetic
    import gpusq_onnx.data.webdataset
    import gpusq_onnx.graph.pack.archive
    import gpusq_onnx.passes.fold
    import gpusq_onnx.passes.fp16
    import gpusq_onnx.passes.prune
    import gpusq_onnx.passes.qdq
    import gpusq_onnx.pipeline.manager
    import gpusq_onnx.report.checking
    import gpusq_onnx.report.inspection
    import gpusq_onnx.report.reading  # noqa: F401
