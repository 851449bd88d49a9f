"""The kernels that a plan or a run leads to: the rules of `report.kernels`, on each weight as it is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.graph.qdq.axes import along_reduction
from gpusq_onnx.graph.qdq.codes import float_format, quantised
from gpusq_onnx.graph.qdq.weight_only import NBITS, nbits_of
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.base import PlanRow
from gpusq_onnx.pipeline.details import (
    LearnedPair,
    NBitsPair,
    Pruned,
    QdqPair,
    TensorPair,
    WeightPair,
    readers_of,
    rows_with,
)
from gpusq_onnx.quant.formats import FORMATS, INT4, Format
from gpusq_onnx.quant.schemes import Quantised
from gpusq_onnx.report.kernels import (
    ONNXRUNTIME,
    UNKNOWN,
    KernelClass,
    Obstacle,
    WeightFacts,
    eligible,
    find_obstacles,
    kernel,
)
from gpusq_onnx.sparsity.patterns import Pattern

IN_NBITS = Obstacle(
    "runtime",
    f"{NBITS} is a node of onnxruntime that TensorRT does not have",
    "--passes int4-weights on the float model writes the form that TensorRT reads",
)
_RESEARCH = "INT4 codes beside quantised data are written for research"
HALF = {"float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Predicted:
    """One weight after the plan; the fields are those of `inspection.WeightReport`."""

    name: str
    role: str
    kernel: KernelClass
    eligible: bool
    obstacles: tuple[Obstacle, ...]
    quantised: tuple[str, ...]


def predict(structure: Structure, rows: Iterable[PlanRow] = ()) -> tuple[Predicted, ...]:
    """Each weight of the model as its passes will leave it. Reads the values of those that no pass prunes.

    Args:
        rows: what is planned for it; none: the model is as it will be.
    """
    plan = tuple(rows)
    patterns: dict[str, Pattern] = {}
    pairs: dict[str, dict[str, Format]] = {}
    floats: dict[str, Format] = {}
    nodes: set[str] = set()
    for row in plan:
        match row.detail:
            case NBitsPair():
                nodes.add(row.tensor)
            case Pruned() as pruned:
                patterns[row.tensor] = pruned.shape
            case WeightPair() as pair:
                pairs.setdefault(row.tensor, {})["weight"] = pair.numbers
            case TensorPair(side="input") as pair:
                for name in pair.sites:
                    pairs.setdefault(name, {})["input"] = pair.numbers
        if row.decision in HALF:
            floats[row.tensor] = FORMATS[HALF[row.decision]]
    for name, written in _outputs(structure, plan):
        pairs.setdefault(name, {})["output"] = written
    stored = dict.fromkeys(found.weight for found in nbits_of(structure.flow.nodes))
    others = [_for_onnxruntime(name, "linear") for name in stored]
    return (
        *(
            _for_onnxruntime(site.name, site.role)
            if site.name in nodes
            else _of(site, patterns.get(site.name), pairs.get(site.name, {}), floats.get(site.name))
            for site in structure.sites
        ),
        *others,
    )


def _for_onnxruntime(name: str, role: str) -> Predicted:
    """A weight in a MatMulNBits, planned or there."""
    return Predicted(name, role, ONNXRUNTIME, False, (IN_NBITS,), ("weight",))


def _outputs(structure: Structure, plan: Iterable[PlanRow]) -> Iterator[tuple[str, Format]]:
    """The sites whose outputs the plan has read through pairs alone: pairs after them, or before what follows."""
    tensors = {tensor.name: tensor for site in structure.sites for tensor in site.outputs}
    formats: dict[tuple[str, int], Format] = {}
    for row, pair in rows_with(plan, QdqPair):
        if row.tensor in tensors and not isinstance(pair, (WeightPair, LearnedPair)) and not pair.numbers.scales:
            for reader in readers_of(pair, tensors[row.tensor], structure):
                formats[row.tensor, id(reader)] = pair.numbers
    for site in structure.sites:
        read = [formats.get((tensor.name, id(reader))) for tensor in site.outputs for reader in tensor.outputs]
        if not site.given and read and read[0] is not None and None not in read:
            yield site.name, read[0]


def _of(site: Site, pattern: Pattern | None, pairs: dict[str, Format], float_type: Format | None) -> Predicted:
    values = site.read() if pattern is None else None
    patterns = site.patterns if pattern is None else (pattern,)
    facts = facts_of(site, patterns, values)
    formats: Quantised = replace(facts.quantised, **pairs)
    facts = replace(facts, quantised=formats, float_type=float_type or facts.float_type)
    choice, found = judged(facts, _RESEARCH)
    return Predicted(site.name, site.role, choice, eligible(found), found, formats.sides)


def judged(facts: WeightFacts, research: str) -> tuple[KernelClass, tuple[Obstacle, ...]]:
    """The kernel that TensorRT can choose for a weight, and what is in the way of a sparse one.

    Args:
        research: why none is known for INT4 codes beside quantised data; "": the builder takes them.
    """
    found, weight = find_obstacles(facts), facts.quantised.weight
    if not research or weight is None or weight.element != INT4.element or facts.quantised.input is None:
        return kernel(facts, found), found
    obstacle = Obstacle("research", research, "--passes qdq-int4 without deployment=native")
    return UNKNOWN, (obstacle, *found)


def facts_of(site: Site, patterns: Sequence[Pattern], w: NDArray[Any] | None) -> WeightFacts:
    """What the rules of `report.kernels` ask of a weight as it is; zeros are counted in `w`."""
    unfused, formats = along_reduction(site), quantised(site)
    return WeightFacts(
        op=site.op,
        out=site.out,
        k=site.k,
        grouped=site.channels,
        patterns=tuple(patterns),
        zeros=0.0 if w is None else 1.0 - float(np.count_nonzero(w)) / max(1, w.size),
        quantised=replace(formats, weight=None) if unfused else formats,
        unfused=unfused,
        float_type=float_format(site),
        conflicts=(*site.unfit, *site.conflicts),
        given=site.given,
    )
