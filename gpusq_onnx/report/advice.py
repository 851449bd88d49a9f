"""What the kernels of a model's weights mean, and what the model can still take to get sparse ones.

A pass refuses what it cannot treat: pruning a quantised model, quantising one twice. So advice for a file depends on
what is in it, and advice for a plan on the passes that are planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from gpusq_onnx.graph.rewrites.runtime_operators import RULES
from gpusq_onnx.pipeline.details import Pruned, WeightPair
from gpusq_onnx.pipeline.finetune import LEARNING
from gpusq_onnx.pipeline.outcome import StepOutcome
from gpusq_onnx.report.kernels import Obstacle
from gpusq_onnx.sparsity.patterns import TWO_FOUR

PASSES = "'prune24,qdq-int8{profile=sparse-int8}'"
_CURABLE = frozenset({"pattern", "precision", "output"})
_WORTH = 0.1  # of the weights: fewer were left out on purpose, such as the head
_WHY = {
    "output": "no pair on outputs",
    "pattern": "not 2:4",
    "precision": "a type without sparse kernels",
    "alignment": "a length that groups of four do not divide",
    "shared": "values that serve more than one Linear",
}


class Weighed(Protocol):
    """A weight with its kernel, now or as planned."""

    @property
    def role(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def obstacles(self) -> tuple[Obstacle, ...]: ...
    @property
    def quantised(self) -> tuple[str, ...]: ...


def verdict(weights: Sequence[Weighed], *, will: bool) -> str:
    """One sentence: which kernels the weights can get, and why they are not sparse; `will`: once the plan is done."""
    counts = Counter(weight.kernel for weight in weights)
    sparse = [weight for weight in weights if weight.kernel.startswith("sparse")]
    run = "will run" if will else "can run"
    listed = ", ".join(f"{number} {kernel}" for kernel, number in counts.most_common())
    if not weights:
        return "no weight of a MatMul, Gemm or Conv"
    if sparse:
        return f"{len(sparse)} of {len(weights)} weights {run} sparse kernels: {listed}"
    reasons = Counter(kind for weight in weights for kind in deciding(weight))
    why = ", ".join(f"{_WHY.get(kind, kind)} ({number})" for kind, number in reasons.most_common())
    return f"all {len(weights)} weights {run} dense kernels, {listed}: {why}"


def accuracy(steps: Sequence[StepOutcome]) -> str:
    """One sentence: what such a plan costs in accuracy, with what it did to a ViT-Tiny; "" of plans that none was.

    Source: the table of docs/benchmarks.md (650 ImageNet images, dense 83.5 %), which has the commands.
    """
    rows = [row for step in steps for row in step.rows]
    pruned = [row.detail for row in rows if isinstance(row.detail, Pruned)]
    codes = {row.detail.format for row in rows if isinstance(row.detail, WeightPair)}
    if pruned and not any(step.name in LEARNING.values() for step in steps):
        return _untrained(pruned, int8=codes == {"int8"})
    if pruned:
        return "expected accuracy: several points below the model's (a ViT-Tiny: 83.5 % to 74 %)"
    if codes == {"int8"}:
        return "expected accuracy: near the model's (a ViT-Tiny: 83.5 % to 83.1 %)"
    return ""


def _untrained(pruned: Sequence[Pruned], *, int8: bool) -> str:
    measured = ""
    if all(detail.pattern == TWO_FOUR.name for detail in pruned):
        left, most = ("49 %", "65 %") if int8 else ("53 %", "66 %")
        better = f"with 1000 images and, for classifiers, permute,prune24{{rows=fisher}} {most}"
        if all(detail.method == "magnitude" for detail in pruned):
            left, better = "6 %", f"by SparseGPT, on images, {left}"
        measured = f" (a ViT-Tiny: 83.5 % to {left}; {better})"
    return f"expected accuracy: far below the model's{measured} until trained: --finetune 2"


def deciding(weight: Weighed) -> list[str]:
    """The kinds of obstacle that rule a sparse kernel out."""
    return list(dict.fromkeys(o.kind for o in weight.obstacles if o.decides))


def for_plan(weights: Sequence[Weighed], pipeline: str) -> list[str]:
    """What would make more of the plan's weights sparse: changes of the pipeline."""
    kinds = Counter({kind: n for kind, n in _curable(weights).items() if n >= _few(weights)})
    lines = []
    if number := kinds["output"]:
        step = next((name for name in ("qdq-int8", "qdq") if name in pipeline), "qdq-int8")
        lines.append(f"for sparse INT8 kernels ({number} weights): --set {step}.profile=sparse-int8")
    if number := kinds["precision"]:
        lines.append(f"for sparse kernels ({number} weights): add qdq-int8{{profile=sparse-int8}}, or fp16")
    if number := kinds["pattern"]:
        lines.append(f"for the 2:4 pattern ({number} weights): put prune24 first, or widen its choice")
    return lines


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
        return []
    if any(weight.quantised for weight in weights):
        return [f"for sparse kernels ({number} weights), start from the float model: apply --passes {PASSES}"]
    if kinds["pattern"] >= _few(weights):
        return [f"for sparse kernels ({number} weights): apply --passes {PASSES}, or 'prune24,fp16'"]
    return [f"for sparse kernels ({number} weights): apply --passes 'qdq-int8{{profile=sparse-int8}}', or fp16"]


def _few(weights: Sequence[Weighed]) -> float:
    """Fewer than this many are not worth advice; a graph of one or two weights is."""
    return min(len(weights), max(2, len(weights) * _WORTH))


def _can_be_helped(weight: Weighed) -> bool:
    """Heads cannot: passes leave them dense unless asked."""
    kinds = deciding(weight)
    return bool(kinds) and set(kinds) <= _CURABLE and weight.role != "head"


def _curable(weights: Sequence[Weighed]) -> Counter[str]:
    """How many weights have each curable obstacle, of those that have no other."""
    return Counter(kind for weight in weights if _can_be_helped(weight) for kind in deciding(weight))
