"""What TensorRT can do with each weight of a model as it is, and what is in the way of its fastest kernel.

For every site: the patterns that its values follow, Q/DQ at its input, weight and output, the stored type, and from
these the kernel class, `dense` or `sparse` in FP32, FP16, BF16 or INT8, by the rules of `report.kernels`.

Limits: read from the graph. Only the engine build says what was chosen; `report.engine` compares.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gpusq_onnx.graph.invariants import QUANTISATION, RESEARCH, block_sizes, violations
from gpusq_onnx.graph.leftovers import Leftover
from gpusq_onnx.graph.model import Model, type_name
from gpusq_onnx.graph.operators import is_standard
from gpusq_onnx.graph.qdq.codes import weight_scales_of
from gpusq_onnx.graph.qdq.dynamic import DOMAIN as TENSORRT
from gpusq_onnx.graph.qdq.weight_only import NBITS, NBits, find_nbits, read_nbits
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.marks import METADATA
from gpusq_onnx.progress import NullProgress, Progress, track
from gpusq_onnx.report.advice import for_file, for_operators
from gpusq_onnx.report.kernels import ONNXRUNTIME, KernelClass, Obstacle, eligible
from gpusq_onnx.report.prediction import IN_NBITS, facts_of, judged
from gpusq_onnx.sparsity.patterns import patterns_of
from gpusq_onnx.tasks.kinds import image_shape

_REFUSING = tuple(rule for rule in QUANTISATION if rule is not block_sizes)  # builders take more
_REFUSED = Obstacle("runtime", "quantised as TensorRT does not take it", "start from the float model")


@dataclass(frozen=True)
class WeightReport:
    """One weight.

    Attributes:
        name, module, role, block, op: where it is; see `graph.sites.Site`.
        shape: [out, k].
        dtype: the stored ONNX type.
        patterns: those of `sparsity.patterns.PATTERNS` that hold, what leaves least first; none: dense.
        zeros: share of elements that are exactly zero, 0 to 1.
        quantised: "weight", "input" and "output", those that have Q/DQ.
        codes: the ONNX type of the weight's codes ("int8", "int4", "float8e4m3fn"); "" for a float weight.
        format: of the weight: "int8", "int4-in-int8", "fp8", ...; "" for a float weight.
        scale_block: elements along k that share a scale; 0: one scale an output channel, or no scale.
        nodes: names of the MatMul, Gemm or Conv nodes that read it.
        kernel: the class that TensorRT can choose, e.g. "sparse INT8"; "onnxruntime only" for a MatMulNBits, and for
            all of a model whose Q/DQ TensorRT refuses; "none known" for forms that are written for research.
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
    format: str
    scale_block: int
    nodes: tuple[str, ...]
    kernel: KernelClass
    eligible: bool
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True)
class OtherConstant:
    """A constant that a product reads and that is no weight matrix; see `graph.leftovers.Leftover`.

    Attributes:
        name, shape: of the constant.
        node, op: the product.
        reader: both, or what it makes where it has no name.
        reason: why it is none.
    """

    name: str
    node: str
    op: str
    reader: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Inspection:
    """A whole model.

    Attributes:
        opset: as it came.
        weights: in graph order.
        others: what is multiplied with besides.
        operators: how many nodes it has of each operator that is neither ONNX's nor TensorRT's, "DOMAIN.NAME".
        takes_images: an input is an image; see `tasks.kinds.image_shape`.
        illegal: how it is quantised in a form that TensorRT does not take; "" where it is not.
        undocumented: how it is in one that TensorRT's documentation does not have, and its builders take.
        metadata: what this tool wrote into it.
    """

    opset: int
    weights: tuple[WeightReport, ...]
    others: tuple[OtherConstant, ...]
    operators: dict[str, int]
    takes_images: bool
    illegal: str
    undocumented: str
    metadata: dict[str, str]

    @property
    def kernels(self) -> dict[str, int]:
        """How many weights each kernel class gets."""
        return dict(sorted(Counter(str(weight.kernel) for weight in self.weights).items()))

    @property
    def advice(self) -> list[str]:
        """What TensorRT lacks, and what the model can still take that makes more of its weights sparse; sentences."""
        if self.illegal:
            return [f"{_REFUSED.text}: {self.illegal}; {_REFUSED.remedy}"]
        known = [f"builders take it, TensorRT documents others: {self.undocumented}"] if self.undocumented else []
        return [*known, *for_operators(self.operators), *for_file(self.weights)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        weights = [{**asdict(weight), "kernel": str(weight.kernel)} for weight in self.weights]
        return {**asdict(self), "weights": weights, "kernels": self.kernels, "advice": self.advice}


def inspect_model(model: Model, progress: Progress = NullProgress()) -> Inspection:  # noqa: B008 - it has no state
    """Look at every weight. Reads each one once; nothing is changed."""
    structure = analyse(model)
    sites = structure.sites
    research = model.metadata.get(RESEARCH, "")
    illegal, undocumented = (next(iter(violations(model, rules)), "") for rules in (_REFUSING, (block_sizes,)))
    found = [_weight(site, research) for site in track(progress, sites, "inspecting weights", len(sites))]
    order = {str(node.name): number for number, node in enumerate(model.graph.nodes)}
    stored: dict[str, list[NBits]] = {}
    for nbits in find_nbits(model):
        stored.setdefault(nbits.weight, []).append(nbits)
    found += map(_nbits, stored.values())
    if illegal:
        found = [replace(weight, kernel=ONNXRUNTIME, eligible=False, obstacles=(_REFUSED,)) for weight in found]
    weights = tuple(sorted(found, key=lambda weight: order[weight.nodes[0]]))
    ours = {key: value for key, value in model.metadata.items() if key.startswith(METADATA)}
    others = tuple(map(_other, structure.leftovers))
    images = bool(image_shape(spec.shape for spec in model.inputs()))
    opset, operators = model.came_with or model.opset, _operators(model)
    return Inspection(opset, weights, others, operators, images, illegal, undocumented, ours)


def _other(left: Leftover) -> OtherConstant:
    node = left.node
    return OtherConstant(left.tensor, str(node.name), str(node.op), node_label(node), left.shape, left.reason)


def _operators(model: Model) -> dict[str, int]:
    foreign = [node for node in model.graph.nodes if not is_standard(node) and node.domain != TENSORRT]
    return dict(Counter(f"{node.domain}.{node.op}" for node in foreign if node.op != NBITS))


def _weight(site: Site, research: str) -> WeightReport:
    w = site.read()
    facts = facts_of(site, site.patterns, w)
    choice, obstacles = judged(facts, research)
    return WeightReport(
        name=site.name,
        module=site.path,
        role=site.role,
        block=site.block,
        op=site.op,
        shape=(site.out, site.k),
        dtype=site.dtype,
        patterns=tuple(pattern.name for pattern in facts.patterns),
        zeros=round(facts.zeros, 4),
        quantised=facts.quantised.sides,
        codes=site.code_type,
        format="" if facts.quantised.weight is None else facts.quantised.weight.name,
        scale_block=weight_scales_of(site).block if site.has_scales else 0,
        nodes=tuple(str(node.name) for node in site.readers),
        kernel=choice,
        eligible=eligible(obstacles),
        obstacles=obstacles,
    )


def _nbits(readers: Sequence[NBits]) -> WeightReport:
    """A weight in nodes of onnxruntime's own, whose codes are no matrix of the graph."""
    found = readers[0]
    plain = found.bits == 4 and len(found.node.inputs) < 4  # without zero points
    codes = read_nbits(found)[0] if plain else None
    kind = f"{'' if plain else 'u'}int{found.bits}"
    return WeightReport(
        name=found.weight,
        module=found.path,
        role="linear",
        block=None,
        op=NBITS,
        shape=(found.out, found.k),
        dtype=type_name(found.node.inputs[1]),
        patterns=() if codes is None else tuple(pattern.name for pattern in patterns_of(codes)),
        zeros=0.0 if codes is None else round(1.0 - float(np.count_nonzero(codes)) / max(1, codes.size), 4),
        quantised=("weight",),
        codes=kind,
        format=kind,
        scale_block=found.block,
        nodes=tuple(str(nbits.node.name) for nbits in readers),
        kernel=ONNXRUNTIME,
        eligible=False,
        obstacles=(IN_NBITS,),
    )
