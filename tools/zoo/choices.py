"""A detector and its compressed form, compared on one choice of queries: the original's.

Near ties of a TopK fall either way after rounding, and then query i of one is another object than query i of the other.
Here the indices that the original's TopK nodes find are fed to the compressed model in place of its own.

Limits: TopK nodes of the main graph, whose names the two models share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def cosines_on_one_choice(original: Path, written: Path, feed: Arrays) -> dict[str, float]:
    """The lowest cosine of a sample, by output of floats; empty where no TopK chooses.

    Args:
        original, written: the model files.
        feed: a batch, samples along axis 0; run one by one where the batch is fixed.
    """
    model, other = onnx.load(original), onnx.load(written)
    outputs = [output.name for output in model.graph.output]
    picks = [node.output[1] for node in model.graph.node if node.op_type == "TopK" and len(node.output) > 1]
    if not picks:
        return {}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in picks if name not in outputs)
    for node in other.graph.node:
        for place, name in enumerate(node.output):
            if name in picks:
                node.output[place] = f"{name}_own"
    other.graph.input.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in picks)
    one, two = _session(model), _session(other)
    lowest: dict[str, float] = {}
    for sample in range(len(next(iter(feed.values())))):
        given = {name: values[sample : sample + 1] for name, values in feed.items()}
        found = dict(zip([*outputs, *picks], one.run([*outputs, *picks], given), strict=True))
        again = two.run(outputs, {**given, **{name: found[name] for name in picks}})
        for name, after in zip(outputs, again, strict=True):
            if after.dtype.kind == "f":
                lowest[name] = min(_cosine(found[name], after), lowest.get(name, 1.0))
    return lowest


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    a, b = one.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 1.0
