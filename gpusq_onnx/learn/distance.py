"""How far pruning moved each critical feature map: D_i of docs/method.md, one pass over the images, nothing trained."""

from __future__ import annotations

from gpusq_onnx.data.source import Source
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.learn.compare import compare
from gpusq_onnx.learn.hardware import Hardware
from gpusq_onnx.learn.objectives import Objective
from gpusq_onnx.learn.planning import sizes
from gpusq_onnx.learn.settings import TrainingOptions
from gpusq_onnx.learn.setup import prepare
from gpusq_onnx.progress import Progress


def distances(
    dense: Model, sparse: Model, source: Source, settings: TrainingOptions, images: int, progress: Progress
) -> list[float]:
    """D_i of each map, first stage first. Raises as `prepare` and `compare`."""
    settings = settings.model_copy(update={"blockwise": 0.0, "tokens": 1.0})  # the whole view alone
    setup, hardware = prepare(sparse, analyse(sparse), dense, settings, sizes(sparse, source)), Hardware(settings)
    objective = Objective(
        settings,
        setup.outputs,
        setup.kinds,
        setup.maps,
        [1.0] * len(setup.maps),
        add=hardware.add,
        processes=hardware.processes,
    )
    for network in (setup.teacher, setup.views[False, False]):
        network.to(hardware.device)
    label = "distances between dense and sparse"
    return list(compare(setup, source, objective, hardware, images, progress, label).distances)
