"""What TensorRT can do with each weight of a model as it is, and what is in the way of its fastest kernel.

For every site: the patterns that its values follow, Q/DQ at its input, weight and output, the stored type, and from
these the kernel class, `dense` or `sparse` in FP32, FP16, BF16 or INT8, by the rules of `report.kernels`.

Limits: read from the graph. Only the engine build says what was chosen; `report.engine` compares.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import Site, before_qdq, code_type
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline.progress import NullProgress, Progress, track
from gpusq_onnx.report.kernels import Facts, Obstacle, eligible, find_obstacles, kernel
from gpusq_onnx.sparsity.patterns import parse_pattern

_PATTERNS = ("1:4", "2:4", "4:8pair")
_PRECISIONS = {"float16": "FP16", "bfloat16": "BF16"}
_CODES = {"float8e4m3fn": "FP8", "float8e5m2": "FP8 E5M2", "float4e2m1": "FP4"}  # others: the ONNX name in capitals


@dataclass(frozen=True)
class WeightReport:
    """One weight.

    Attributes:
        name, module, role, block, op: where it is; see `graph.sites.Site`.
        shape: [out, k].
        dtype: the stored ONNX type.
        patterns: those of "1:4", "2:4" and "4:8pair" that hold; none: dense.
        zeros: share of elements that are exactly zero, 0 to 1.
        quantised: "weight", "input" and "output", those that have Q/DQ.
        codes: the ONNX type of the weight's codes ("int8", "int4", "float8e4m3fn"); "" for a float weight.
        nodes: names of the MatMul, Gemm or Conv nodes that read it.
        kernel: the class that TensorRT can choose, e.g. "sparse INT8".
        eligible: the builder should find it fit for sparse kernels, chosen or not.
        obstacles: what keeps it from a sparse kernel, or makes a dense one likelier; empty where nothing does.
    """

    name: str
    module: str
    role: str
    block: int | None
    op: str
    shape: tuple[int, int]
    dtype: str
    patterns: tuple[str, ...]
    zeros: float
    quantised: tuple[str, ...]
    codes: str
    nodes: tuple[str, ...]
    kernel: str
    eligible: bool
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True)
class Inspection:
    """A whole model: its weights in graph order."""

    opset: int
    weights: tuple[WeightReport, ...]
    metadata: dict[str, str]

    @property
    def kernels(self) -> dict[str, int]:
        """How many weights each kernel class gets."""
        return dict(sorted(Counter(weight.kernel for weight in self.weights).items()))

    @property
    def remedies(self) -> dict[str, int]:
        """What would take a deciding obstacle out of the way, and for how many weights."""
        each = (o.remedy for weight in self.weights for o in weight.obstacles if o.decides and o.remedy)
        return dict(Counter(each).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "kernels": self.kernels, "remedies": self.remedies}


def inspect_model(model: Model, progress: Progress = NullProgress()) -> Inspection:  # noqa: B008 - it has no state
    """Look at every weight. Reads each one once; nothing is changed."""
    sites = analyse(model).sites
    weights = tuple(_weight(site) for site in track(progress, sites, "inspecting weights", len(sites)))
    ours = {key: value for key, value in model.metadata.items() if key.startswith("pkg.gpusq_onnx.")}
    return Inspection(model.opset, weights, ours)


def _weight(site: Site) -> WeightReport:
    w = site.read()
    grouped = site.channels
    patterns = _patterns(w, grouped)
    facts = Facts(
        op=site.op,
        out=site.out,
        k=site.k,
        grouped=grouped,
        sparse="2:4" in patterns,
        zeros=1.0 - float(np.count_nonzero(w)) / max(1, w.size),
        quantised=_quantised(site),
        float_type=_PRECISIONS.get(_float_type(site), "FP32"),
        conflicts=(*site.unfit, *site.conflicts),
        weight_type=_told(site.code_type),
        input_type=_told(_input_type(site)),
    )
    obstacles = find_obstacles(facts)
    return WeightReport(
        name=site.name,
        module=site.path,
        role=site.role,
        block=site.block,
        op=site.op,
        shape=(site.out, site.k),
        dtype=site.dtype,
        patterns=patterns,
        zeros=round(facts.zeros, 4),
        quantised=facts.quantised,
        codes=site.code_type,
        nodes=tuple(str(node.name) for node in site.readers),
        kernel=kernel(facts, obstacles),
        eligible=eligible(obstacles),
        obstacles=obstacles,
    )


def _patterns(w: NDArray[Any], grouped: int) -> tuple[str, ...]:
    known = (parse_pattern(name) for name in _PATTERNS)
    return tuple(pattern.name for pattern in known if grouped % pattern.group == 0 and pattern.holds(w))


def _quantised(site: Site) -> tuple[str, ...]:
    found = ["weight"] if site.quantised else []
    if all(before_qdq(operand) is not operand for node in site.readers for operand in _data(site, node)):
        found.append("input")
    if site.output.outputs and all(node.op == "QuantizeLinear" for node in site.output.outputs):
        found.append("output")
    return tuple(found)


def _input_type(site: Site) -> str:
    """The type of the codes that the first reader's data is dequantised from; "" for float data."""
    operand = _data(site, site.readers[0])[:1]
    pair = [tensor for tensor in operand if before_qdq(tensor) is not tensor]
    return code_type(pair[0].inputs[0].inputs[0].inputs[0]) if pair else ""


def _told(codes: str) -> str:
    return _CODES.get(codes, codes.upper())


def _data(site: Site, node: Any) -> list[Any]:
    """The operands of a reader that do not come from the site's weight."""
    trail = {id(step) for step in site.trail}
    return [t for t in node.inputs[:2] if t is not site.weight and not any(id(step) in trail for step in t.inputs)]


def _float_type(site: Site) -> str:
    """The type that the product has without INT8: the weight's own, or that of the scale which restores it."""
    scales = [node.inputs[1].dtype for node in site.trail if node.op == "DequantizeLinear"]
    return np.dtype(scales[0]).name if scales else site.dtype
