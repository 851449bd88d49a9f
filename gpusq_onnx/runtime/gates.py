"""Gates: what a comparison must reach for a model to pass.

A candidate with NaN or infinity where its reference is finite passes no check, whatever the gates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gpusq_onnx.errors import GateFailed, UsageError
from gpusq_onnx.runtime.compare import Comparison


@dataclass(frozen=True)
class Gates:
    """Bounds on a `Comparison`; None: not asked for.

    Attributes:
        min_cosine: least mean cosine of every output, -1 to 1.
        max_abs: greatest absolute difference of any output, from 0.
        min_agreement: least top-1 agreement, a fraction from 0 to 1.
        max_top1_drop: greatest loss of top-1 accuracy, in percentage points from 0 to 100; needs labels.
        min_top1: least top-1 accuracy of the candidate, a fraction from 0 to 1; needs labels.

    Raises:
        UsageError: a bound is out of its range.
    """

    min_cosine: float | None = None
    max_abs: float | None = None
    min_agreement: float | None = None
    max_top1_drop: float | None = None
    min_top1: float | None = None

    def __post_init__(self) -> None:
        ranges = {
            "min_cosine": (-1.0, 1.0),
            "max_abs": (0.0, float("inf")),
            "min_agreement": (0.0, 1.0),
            "max_top1_drop": (0.0, 100.0),
            "min_top1": (0.0, 1.0),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"gate {name} is out of range", expected=f"{low:g} to {high:g}", found=f"{value:g}")

    @property
    def need_labels(self) -> bool:
        """Whether a gate is about accuracy."""
        return self.max_top1_drop is not None or self.min_top1 is not None

    def failures(self, comparison: Comparison) -> list[str]:
        """A sentence for each gate that is not met, with its bound and what was found.

        Raises:
            UsageError: a gate asks for what the model or the data cannot give.
        """
        return [*self._outputs(comparison), *self._classes(comparison)]

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
            asked = self.min_cosine is not None or self.max_abs is not None
            if asked and output.shape_mismatches:
                yield f"output {output.name} has another shape in {output.shape_mismatches} batches"
            elif asked and (output.cosine_mean is None or output.max_abs is None):
                yield f"output {output.name} has nothing to compare"
            if self.min_cosine is not None and output.cosine_mean is not None and output.cosine_mean < self.min_cosine:
                yield f"output {output.name} has cosine {output.cosine_mean:.6f}, at least {self.min_cosine:g} asked"
            if self.max_abs is not None and output.max_abs is not None and output.max_abs > self.max_abs:
                yield f"output {output.name} differs by {output.max_abs:.6g}, at most {self.max_abs:g} asked"

    def _classes(self, comparison: Comparison) -> Iterator[str]:
        agreement, reference = comparison.top1_agreement, comparison.reference_metrics
        if self.min_agreement is not None:
            if agreement is None:
                raise UsageError(
                    "gate min_agreement needs a classifier",
                    expected="one output of shape [N, classes]",
                    hint="use min_cosine",
                )
            if agreement < self.min_agreement:
                yield f"top-1 agreement is {agreement:.4f}, at least {self.min_agreement:g} asked"
        if not self.need_labels:
            return
        if reference is None or comparison.candidate_metrics is None:
            name = "max_top1_drop" if self.max_top1_drop is not None else "min_top1"
            raise UsageError(f"gate {name} needs a classifier and data with labels", hint="give --classes")
        top1 = comparison.candidate_metrics["top1"]
        drop = round(100 * (reference["top1"] - top1), 9)  # 0.84 - 0.83 is a little more than one point in binary
        if self.max_top1_drop is not None and drop > self.max_top1_drop:
            yield f"top-1 falls by {drop:.2f} points, at most {self.max_top1_drop:g} asked"
        if self.min_top1 is not None and top1 < self.min_top1:
            yield f"top-1 is {top1:.4f}, at least {self.min_top1:g} asked"
