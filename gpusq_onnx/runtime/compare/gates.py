"""Gates: what a comparison must reach for a model to pass.

A candidate with NaN or infinity where its reference is finite passes no check, whatever the gates.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from gpusq_onnx.errors import GateFailed, UsageError
from gpusq_onnx.runtime.compare.outputs import Comparison
from gpusq_onnx.tasks.scored import SCORED


@dataclass(frozen=True)
class Gates:
    """Bounds on a `Comparison`; None: not asked for.

    Attributes:
        min_cosine: least mean cosine of every output, 0 to 1.
        min_agreement: least top-1 agreement, a fraction from 0 to 1.
        max_top1_drop: greatest loss of top-1 accuracy, in percentage points from 0 to 100; needs labels.
        min_top1: least top-1 accuracy of the candidate, a fraction from 0 to 1; needs labels.
        max_ap_drop, min_ap: the same of a detector's average precision; need annotations.
        max_mask_ap_drop, min_mask_ap: the same of its masks; need annotations with outlines.
        max_miou_drop, min_miou: the same of a segmenter's mean IoU; need label maps.

    Raises:
        UsageError: a bound is out of its range.
    """

    min_cosine: float | None = None
    min_agreement: float | None = None
    max_top1_drop: float | None = None
    min_top1: float | None = None
    max_ap_drop: float | None = None
    min_ap: float | None = None
    max_mask_ap_drop: float | None = None
    min_mask_ap: float | None = None
    max_miou_drop: float | None = None
    min_miou: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            limit = 100.0 if name.endswith("_drop") else 1.0
            if value is not None and not 0.0 <= value <= limit:
                raise UsageError(f"gate {name} is out of range", expected=f"0 to {limit:g}", found=f"{value:g}")

    def ask_for(self, metric: str) -> bool:
        """Whether a gate is about a metric: "top1", "AP", "mask_AP", "mIoU"."""
        return any(bound is not None for bound in self._bounds(metric).values())

    def _bounds(self, metric: str) -> dict[str, float | None]:
        """The greatest drop and the least value of a metric, by the gates' names."""
        return {name: getattr(self, name) for name in (f"max_{metric.lower()}_drop", f"min_{metric.lower()}")}

    def failures(self, comparison: Comparison) -> list[str]:
        """A sentence for each gate that is not met, with its bound and what was found.

        Raises:
            UsageError: a gate asks for what the model or the data cannot give.
        """
        return [*self._outputs(comparison), *self._agreement(comparison), *self._metrics(comparison)]

    def check(self, comparison: Comparison) -> None:
        """Nothing when every gate is met.

        Raises:
            GateFailed: one or more are not; the text has `failures`.
            UsageError: as `failures`.
        """
        failures = self.failures(comparison)
        if failures:
            raise GateFailed(
                f"{len(failures)} of the checks failed",
                where=f"{comparison.samples} samples",
                found="; ".join(failures),
                hint="look at the report, prune or quantise less, or lower the gate",
            )

    def _outputs(self, comparison: Comparison) -> Iterator[str]:
        for output in comparison.outputs:
            if output.nonfinite:
                yield f"output {output.name} has {output.nonfinite} values that are NaN or infinite, the reference none"
            if self.min_cosine is None:
                continue
            if output.shape_mismatches:
                yield f"output {output.name} has another shape in {output.shape_mismatches} batches"
            elif output.cosine_mean is None:
                yield f"output {output.name} has nothing to compare"
            elif output.cosine_mean < self.min_cosine:
                yield f"output {output.name} has cosine {output.cosine_mean:.6f}, at least {self.min_cosine:g} asked"

    def _agreement(self, comparison: Comparison) -> Iterator[str]:
        agreement = comparison.top1_agreement
        if self.min_agreement is None:
            return
        if agreement is None:
            raise UsageError(
                "gate min_agreement needs a classifier",
                expected="one output of shape [N, classes]",
                hint="use min_cosine",
            )
        if agreement < self.min_agreement:
            yield f"top-1 agreement is {agreement:.4f}, at least {self.min_agreement:g} asked"

    def _metrics(self, comparison: Comparison) -> Iterator[str]:
        before, after = comparison.reference_metrics or {}, comparison.candidate_metrics or {}
        for key, metric in SCORED.items():
            bounds = self._bounds(key)
            gates = [gate for gate, bound in bounds.items() if bound is not None]
            if not gates:
                continue
            if key not in before or key not in after:
                needs = f"{metric.model}, and data with {metric.truth}"
                raise UsageError(f"gate {gates[0]} needs {needs}", hint=f"give {metric.given_by}")
            most, least = bounds.values()
            drop = round(100 * (before[key] - after[key]), 9)  # 0.84 - 0.83 is a little more than one point in binary
            if most is not None and drop > most:
                yield f"{metric.name} falls by {drop:.2f} points, at most {most:g} asked"
            if least is not None and after[key] < least:
                yield f"{metric.name} is {after[key]:.4f}, at least {least:g} asked"
