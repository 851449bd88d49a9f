"""The gate of `build`: how many layers must run sparse kernels."""

import re
from dataclasses import dataclass, replace

from gpusq_onnx.errors import UsageError
from gpusq_onnx.report.engine import EngineReport


@dataclass(frozen=True)
class SparseGate:
    """`least` chosen layers, or `least` percent of the eligible ones."""

    least: float
    percent: bool

    def judge(self, report: EngineReport) -> EngineReport:
        """The report with what is not met; nothing known of sparsity is not met, and so is nothing eligible."""
        wanted = f"{self.least:g}{' % of the eligible layers' if self.percent else ''}"
        if not report.known:
            failure = f"--min-sparse-chosen {wanted}: the builder reported nothing about sparse kernels"
        elif self.percent and not report.eligible:
            failure = f"--min-sparse-chosen {wanted}: no layer is eligible"
        elif (100.0 * report.chosen / report.eligible if self.percent else report.chosen) < self.least:
            failure = f"--min-sparse-chosen {wanted}: {report.chosen} chosen of {report.eligible} eligible"
        else:
            return report
        return replace(report, failures=(*report.failures, failure))


def parse_gate(text: str) -> SparseGate:
    """`10` layers, or `80%`.

    >>> parse_gate("80%")
    SparseGate(least=80.0, percent=True)

    Raises:
        UsageError: neither, or a share above 100 %.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", text.strip())
    if match is None or (match[1] and float(match[1]) > 100):
        raise UsageError(
            "--min-sparse-chosen cannot be read", expected="a number of layers, 10, or a share, 80%", found=text
        )
    return SparseGate(float(match[1] or match[2]), bool(match[1]))
