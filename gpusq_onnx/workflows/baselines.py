"""The rows of a benchmark: the models that were given, and the dense formats that are timed beside them.

Baselines come from the first dense FP32 model given, else from the first model with its Q/DQ pairs taken out (its zeros
stay, which no dense kernel notices). A format that a given model has already is not made again; one that cannot be made
is noted with the reason.

    FP32, TF32   the float model, products in FP32 or in TF32
    FP16         the pass `fp16`
    INT8         the pass `qdq-int8` on synthetic images (it is timed, not asked for accuracy); on GPUs then `fp16`
    others       what a backend offers beside, e.g. BF16 and FP8

Params and FLOPs are bit-weighted as the paper counts them (its Table 1): stored bits / 32, and 2 MACs, halved where
2:4, divided by (32 / bits)².
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import GpusqError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.cost import form_of
from gpusq_onnx.graph.model import Model, TensorSpec
from gpusq_onnx.graph.pin import Sizes, is_open, pinned
from gpusq_onnx.graph.qdq.float_twin import remove_quantisation
from gpusq_onnx.pipeline import grammar, manager, table
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.pipeline.summary import Planned, measure_countable
from gpusq_onnx.progress import Progress
from gpusq_onnx.report.inspection import WeightReport, inspect_model
from gpusq_onnx.runtime.bench.backend import Backend, Baseline, Variant
from gpusq_onnx.runtime.observed import observed

Pin = Callable[[Sequence[TensorSpec]], Sizes]

_SAMPLES = 8  # enough to have scales
_FLOATS = {"float": "FP32", "float16": "FP16", "bfloat16": "BF16"}
_PASSES = {"half": "fp16", "int8": "qdq-int8", "int8-half": "qdq-int8,fp16"}


@dataclass(frozen=True)
class TimedModel:
    """One row to be timed.

    Attributes:
        model, format: its name in the table, e.g. "small", "INT8 2:4".
        given: named by the caller; else a baseline.
        parameters, flops: in millions and in 10⁹, bit-weighted.
        variant: what the backend runs.
    """

    model: str
    format: str
    given: bool
    parameters: float
    flops: float
    variant: Variant


def at_size(path: Path, scratch: Path, sizes: Pin) -> Path:
    """The model's file; of one that takes any size, a file of its name in the new folder `scratch` that takes one."""
    model = io.load(path)
    wanted = sizes(model.inputs())
    if not is_open(model.inputs()):
        return path
    scratch.mkdir()
    io.save(pinned(model, wanted), scratch / path.name)
    return scratch / path.name


def given_entry(path: Path) -> TimedModel:
    """The row of a model as it is. Raises as `graph.io.load`."""
    model = io.load(path)
    name, sparse = _format(model)
    precision = "FP32" if name == "FP32" and not sparse else "as is"
    label = f"{name} 2:4" if sparse else name
    return TimedModel(path.stem, label, True, *_cost(model), Variant(path, precision, sparse))


def baseline_entries(
    given: Sequence[TimedModel], backend: Backend, scratch: Path, notes: list[str], progress: Progress
) -> Iterator[TimedModel]:
    """The backend's formats that nobody gave; files go into `scratch`, what could not be made into `notes`."""
    formats = {entry.format: entry for entry in reversed(given)}  # the first of each
    wanted = [baseline for baseline in backend.baselines if baseline.format not in formats]
    if not wanted:
        return
    dense = formats.get("FP32")
    name = (dense or given[0]).model
    source = dense.variant.path if dense else _float_twin(given[0], scratch, notes)
    if source is None:
        return
    files: dict[str, Path | None] = {"float": source}
    if "INT8" in formats:
        files["int8"] = files["int8-half"] = formats["INT8"].variant.path
    for baseline in wanted:
        if baseline.source not in files:
            progress.start(f"making the dense {baseline.format}")
            files[baseline.source] = _made(source, baseline, scratch, notes)
            progress.finish()
        path = files[baseline.source]
        if path is not None:
            parameters, flops = _cost(io.load(path), dense=True)
            if baseline.source == "float" and baseline.format in ("FP16", "BF16"):  # cast by the backend
                parameters, flops = parameters / 2, flops / 4
            yield TimedModel(name, baseline.format, False, parameters, flops, Variant(path, baseline.precision))


def _format(model: Model) -> tuple[str, bool]:
    """The format that most of the weights have, by elements, and whether most are 2:4."""
    weights = inspect_model(model).weights
    whole = _elements(weights)
    sparse = 2 * _elements(w for w in weights if "2:4" in w.patterns) > whole
    for name in sorted({_coded(weight) for weight in weights} - {""}):
        if 2 * _elements(w for w in weights if _coded(w) == name) > whole:
            return name, sparse
    kinds = {reported: _elements(w for w in weights if w.dtype == kind) for kind, reported in _FLOATS.items()}
    return max(kinds, key=lambda reported: kinds[reported]), sparse


def _coded(weight: WeightReport) -> str:
    """What kernels see of a quantised weight: "INT8", where the data is, too, "INT4 weights"; "" for a float one."""
    if not weight.format:
        return ""
    name = "INT8" if weight.codes == "int8" else weight.format.upper()  # 4 bits in INT8 tensors run as these
    return name if "input" in weight.quantised else f"{name} weights"


def _elements(weights: Iterable[WeightReport]) -> int:
    return sum(w.shape[0] * w.shape[1] for w in weights)


def _cost(model: Model, *, dense: bool = False) -> tuple[float, float]:
    planned = Planned(lambda site: form_of(site, None)) if dense else None
    total = measure_countable(model, observed(model), planned).total
    return total["stored_parameters"] / 1e6, 2 * total["bit_operations"] / 32**2 / 1e9


def _float_twin(entry: TimedModel, scratch: Path, notes: list[str]) -> Path | None:
    model = io.load(entry.variant.path)
    remove_quantisation(model)
    name, _ = _format(model)
    if name != "FP32":
        notes.append(f"no dense baselines: {entry.model} without Q/DQ is {name}; name the FP32 model, too")
        return None
    path = scratch / "float.onnx"
    io.save(model, path)
    return path


def _made(source: Path, baseline: Baseline, scratch: Path, notes: list[str]) -> Path | None:
    path = scratch / f"{baseline.source}.onnx"
    pipeline = table.expand(grammar.parse(_PASSES[baseline.source]))
    options = DataOptions.from_values({"samples": _SAMPLES})
    try:
        manager.run(source, path, pipeline, RunOptions(options))
    except GpusqError as error:
        notes.append(f"no dense {baseline.format}: {error.what}")
        return None
    return path
