"""Gates: what a comparison must reach for a model to pass.

A candidate with NaN or infinity where its reference is finite passes no check, whatever the gates.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from gpusq_onnx.errors import GateFailed, UsageError
from gpusq_onnx.runtime.compare import Comparison


@dataclass(frozen=True)
class Gates:
    """Bounds on a `Comparison`; None: not asked for.

    Attributes:
        min_cosine: least mean cosine of every output, 0 to 1.
        min_agreement: least top-1 agreement, a fraction from 0 to 1.
        max_top1_drop: greatest loss of top-1 accuracy, in percentage points from 0 to 100; needs labels.
        min_top1: least top-1 accuracy of the candidate, a fraction from 0 to 1; needs labels.

    Raises:
        UsageError: a bound is out of its range.
    """

    min_cosine: float | None = None
    min_agreement: float | None = None
    max_top1_drop: float | None = None
    min_top1: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            limit = 100.0 if name == "max_top1_drop" else 1.0
            if value is not None and not 0.0 <= value <= limit:
                raise UsageError(f"gate {name} is out of range", expected=f"0 to {limit:g}", found=f"{value:g}")

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
            if self.min_cosine is None:
                continue
            if output.shape_mismatches:
                yield f"output {output.name} has another shape in {output.shape_mismatches} batches"
            elif output.cosine_mean is None:
                yield f"output {output.name} has nothing to compare"
            elif output.cosine_mean < self.min_cosine:
                yield f"output {output.name} has cosine {output.cosine_mean:.6f}, at least {self.min_cosine:g} asked"

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
