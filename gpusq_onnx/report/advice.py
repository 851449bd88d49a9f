"""What the kernels of a model's weights mean, and what the model can still take to get sparse ones.

A pass refuses what it cannot treat: pruning a quantised model, quantising one twice. So advice for a file depends on
what is in it, and advice for a plan on the passes that are planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Protocol

from gpusq_onnx.graph.rewrites.runtime_operators import RULES
from gpusq_onnx.graph.roles import ROLES
from gpusq_onnx.pipeline.base import Detail
from gpusq_onnx.pipeline.details import Pruned, TensorPair, WeightPair
from gpusq_onnx.pipeline.finetune import LEARNING
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.outcome import StepOutcome
from gpusq_onnx.pipeline.targets import TARGETS
from gpusq_onnx.quant.formats import INT4, INT4_IN_INT8, INT8
from gpusq_onnx.quant.schemes import form_name
from gpusq_onnx.report.kernels import DOUBLE, Deciding, KernelClass, Likely, Obstacle
from gpusq_onnx.sparsity.patterns import TWO_FOUR

PASSES = "'prune24,qdq-int8{profile=sparse-int8}'"
_PROFILED = ("qdq-int8", "qdq-int4", "qdq")  # the passes that have an option profile
_CURABLE = frozenset({"pattern", "precision", "output"})
_WORTH = 0.1  # of the weights: fewer were left out on purpose, such as the head
_WHY: Mapping[Deciding | Likely, str] = {
    "output": "no pair on outputs",
    "caller": "outputs that are the graph's",
    "pattern": "not 2:4",
    "precision": "a type without sparse kernels",
    "alignment": "a length that groups of four do not divide",
    "shared": "values that serve more than one Linear",
    "runtime": "a form that TensorRT does not take",
    "research": "a form that is written for research",
}


class Weighed(Protocol):
    """A weight with its kernel, now or as planned."""

    @property
    def role(self) -> str: ...
    @property
    def kernel(self) -> KernelClass: ...
    @property
    def obstacles(self) -> tuple[Obstacle, ...]: ...
    @property
    def quantised(self) -> tuple[str, ...]: ...


def verdict(weights: Sequence[Weighed], *, will: bool, target: str | None = None) -> str:
    """One sentence: which kernels the weights can get, and why they are not sparse.

    Args:
        will: they get them once the plan is done.
        target: what was asked for, a row of `pipeline.targets`; None: TensorRT.
    """
    if not weights:
        return "no weight of a MatMul, Gemm or Conv"
    if target is not None and not TARGETS[target].sparse:
        return _without_sparse(weights, TARGETS[target].runtime)
    kinds = Counter(weight.kernel.kind for weight in weights)
    run = "will run" if will else "can run"
    if kinds["onnxruntime only"] == len(weights):
        return f"TensorRT {run} none of the {len(weights)} weights"
    listed = ", ".join(f"{number} {kernel}" for kernel, number in Counter(w.kernel for w in weights).most_common())
    if sparse := kinds["sparse"]:
        return f"{sparse} of {len(weights)} weights {run} sparse kernels: {listed}"
    reasons = Counter(kind for weight in weights for kind in deciding(weight))
    why = ", ".join(f"{_WHY[kind]} ({number})" for kind, number in reasons.most_common())
    dense = kinds["dense"]
    number = "all" if dense == len(weights) else f"{dense} of" if dense else "none of"
    return f"{number} {len(weights)} weights {run} dense kernels, {listed}: {why}"


def _without_sparse(weights: Sequence[Weighed], runtime: str) -> str:
    """The same of a target that has no sparse kernels at all."""
    types = Counter(weight.kernel.precision or str(weight.kernel) for weight in weights)
    listed = ", ".join(f"{number} {kind}" for kind, number in types.most_common())
    return f"{runtime} computes all {len(weights)} weights dense: {listed}"


def accuracy(steps: Sequence[StepOutcome]) -> str:
    """One sentence: what such a plan costs in accuracy, with what it did to a ViT-Tiny; "" of plans that none was.

    Where most of the weights stay as they are, nothing was measured, and nothing is said.

    Source: the tables of docs/benchmarks.md (650 ImageNet images, dense 83.5 %), which has the commands.
    """
    details = [row.detail for step in steps for row in step.rows]
    pruned = [detail for detail in details if isinstance(detail, Pruned)]
    treated, known = _sizes(steps, Pruned if pruned else WeightPair)
    if 2 * treated < known:
        return ""
    weights = {detail.format for detail in details if isinstance(detail, WeightPair)}
    inputs = {detail.format for detail in details if isinstance(detail, TensorPair) and detail.side == "input"}
    form = form_name("/".join(sorted(weights)), "/".join(sorted(inputs)) or "float")
    trained = any(step.name in LEARNING.values() for step in steps)
    if pruned and not trained:
        return f"expected accuracy: {_untrained(pruned, form if weights else '')}"
    if pruned:
        return "expected accuracy: several points below the model's (a ViT-Tiny: 83.5 % to 74 %)"
    said = _TRAINED.get(form) or _UNPRUNED.get(form) if trained else _UNPRUNED.get(form)
    return f"expected accuracy: {said}" if said else ""


_UNPRUNED = {
    form_name(INT8.name, INT8.name): "near the model's (a ViT-Tiny: 83.5 % to 82.9 %)",
    form_name(INT4.name, "float"): "a point or two below the model's (a ViT-Tiny: 83.5 % to 82.2 %)",
    form_name(INT4_IN_INT8.name, INT8.name): "some points below the model's until trained: --finetune 3 (a ViT-Tiny: "
    "83.5 % to 79.2 %, trained 81.1 %)",
    form_name(INT4_IN_INT8.name, INT4_IN_INT8.name): "far below the model's until trained: --finetune 10",
}
"""By form of the Linears, of what no pass prunes."""

_TRAINED = {
    form_name(INT4_IN_INT8.name, INT8.name): "two or three points below the model's (a ViT-Tiny: 83.5 % to 81.1 %)",
    form_name(INT4_IN_INT8.name, INT4_IN_INT8.name): "ten points below the model's (a ViT-Tiny: 83.5 % to 72.0 %)",
}


def _sizes(steps: Sequence[StepOutcome], kind: type[Detail]) -> tuple[int, int]:
    """The elements of the weights that rows of this kind treat, and of all weights that such passes looked at."""
    treated: dict[str, int] = {}
    known: dict[str, int] = {}
    for step in steps:
        if not any(isinstance(row.detail, kind) for row in step.rows):
            continue
        for row in step.rows:
            sizes = [size for size in row.shape if isinstance(size, int)]
            if row.role in ROLES and len(sizes) == len(row.shape):
                known[row.tensor] = prod(sizes)
                if isinstance(row.detail, kind):
                    treated[row.tensor] = known[row.tensor]
    return sum(treated.values()), sum(known.values())


def _untrained(pruned: Sequence[Pruned], form: str) -> str:
    """Of a pruned model; `form`: of its Linears, "" where they stay float."""
    best = {"": ("53 %", "66 %"), form_name(INT8.name, INT8.name): ("49 %", "65 %")}.get(form)
    measured = ""
    if best and all(detail.pattern == TWO_FOUR.name for detail in pruned):
        left, most = best
        better = f"with 1000 images and, for classifiers, permute,prune24{{rows=fisher}} {most}"
        if all(detail.method == "magnitude" for detail in pruned):
            left, better = "6 %", f"by SparseGPT, on images, {left}"
        measured = f" (a ViT-Tiny: 83.5 % to {left}; {better})"
    return f"far below the model's{measured} until trained: --finetune 2"


def deciding(weight: Weighed) -> list[Deciding | Likely]:
    """The kinds of obstacle that rule a sparse kernel out."""
    return list(dict.fromkeys(o.kind for o in weight.obstacles if o.decides))


def for_plan(weights: Sequence[Weighed], pipeline: str, target: str | None) -> list[str]:
    """What would make more weights sparse, where the target has sparse kernels: changes of the pipeline."""
    if target is not None and not TARGETS[target].sparse:
        return []
    kinds = Counter({kind: n for kind, n in _curable(weights).items() if n >= _few(weights)})
    lines = _exported_anew(weights)
    steps = [step.name for step in parse(pipeline).steps]
    if (number := kinds["output"]) and (step := next((name for name in steps if name in _PROFILED), None)):
        lines.append(f"for sparse INT8 kernels ({number} weights): --set {step}.profile=sparse-int8")
    if number := kinds["precision"]:
        fp16 = ", or fp16" if _takes_fp16(weights) else ""
        lines.append(f"for sparse kernels ({number} weights): add qdq-int8{{profile=sparse-int8}}{fp16}")
    if number := kinds["pattern"]:
        lines.append(f"for the 2:4 pattern ({number} weights): {_pruning(steps)}")
    return lines


def _pruning(steps: Sequence[str]) -> str:
    """What to do for more 2:4 weights, by the names of the passes: what reorders channels stays first."""
    if any(name.startswith("prune") for name in steps):
        return "widen prune24's choice"
    return "add prune24 after permute" if "permute" in steps else "put prune24 first"


def for_operators(operators: Mapping[str, int]) -> list[str]:
    """What becomes of operators that TensorRT does not have, by "DOMAIN.NAME" and number."""
    known = {name: number for name, number in operators.items() if name in RULES}
    lines = []
    for found, then in (
        (known, "apply writes them in ONNX's own first (canonical)"),
        ({name: number for name, number in operators.items() if name not in known}, "it needs plugins for them"),
    ):
        if found:
            names = ", ".join(f"{number} x {name}" for name, number in found.items())
            lines.append(f"TensorRT does not have these operators: {names}; {then}")
    return lines


def for_file(weights: Sequence[Weighed]) -> list[str]:
    """What would make more of a file's weights sparse: commands that this file can still take."""
    kinds = _curable(weights)
    number = len([weight for weight in weights if _can_be_helped(weight)])
    if not number or number < _few(weights):
        return _exported_anew(weights)
    if any(weight.quantised for weight in weights):
        return [f"for sparse kernels ({number} weights), start from the float model: apply --passes {PASSES}"]
    pruned = kinds["pattern"] < _few(weights)
    passes, half = ("'qdq-int8{profile=sparse-int8}'", "fp16") if pruned else (PASSES, "'prune24,fp16'")
    fp16 = f", or {half}" if _takes_fp16(weights) else ""
    return [f"for sparse kernels ({number} weights): apply --passes {passes}{fp16}"]


def _exported_anew(weights: Sequence[Weighed]) -> list[str]:
    """What to do about weights of a type that TensorRT does not have."""
    number = sum(DOUBLE in weight.obstacles for weight in weights)
    return [f"for TensorRT, which has no FP64 ({number} weights): {DOUBLE.remedy}"] if number else []


def _takes_fp16(weights: Sequence[Weighed]) -> bool:
    """Whether the pass `fp16` changes a model of these weights: what computes in bfloat16 it leaves so."""
    return not any("BF16" in weight.kernel.types for weight in weights)


def _few(weights: Sequence[Weighed]) -> float:
    """Fewer than this many are not worth advice; a graph of one or two weights is."""
    return min(len(weights), max(2, len(weights) * _WORTH))


def _can_be_helped(weight: Weighed) -> bool:
    """Heads cannot: passes leave them dense unless asked."""
    kinds = deciding(weight)
    return bool(kinds) and set(kinds) <= _CURABLE and weight.role != "head"


def _curable(weights: Sequence[Weighed]) -> Counter[Deciding | Likely]:
    """How many weights have each curable obstacle, of those that have no other."""
    return Counter(kind for weight in weights if _can_be_helped(weight) for kind in deciding(weight))
