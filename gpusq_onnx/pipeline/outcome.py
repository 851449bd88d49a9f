"""What the manager hands back: each pass's rows and findings, totals before and after; the same for a plan and a run.

Plain values throughout, so that the report is a dump of it. Nothing here depends on time but `seconds`, and nothing on
the host.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpusq_onnx.pipeline.base import PlanRow
from gpusq_onnx.pipeline.learned import Learned
from gpusq_onnx.pipeline.summary import Architecture, Cost


@dataclass(frozen=True)
class FileFacts:
    """A model file.

    Attributes:
        path: as the caller named it.
        bytes: its size.
        sha256: in hex, of the file and its external data.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class StepOutcome:
    """One pass.

    Attributes:
        name, version: of the pass.
        options: all of them, defaults filled in.
        rows: what was decided for each tensor.
        findings: what the pass measured; empty in a plan.
        facts: what holds from here on, as sentences.
        seconds: of `apply`; None in a plan.
    """

    name: str
    version: int
    options: Mapping[str, Any]
    rows: tuple[PlanRow, ...]
    findings: Mapping[str, Any] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    seconds: float | None = None

    @property
    def learned(self) -> Learned:
        """What a learning pass measured; of others, whose findings are their own, nothing."""
        return Learned.of(self.findings) if "curve" in self.findings else Learned()

    @property
    def decisions(self) -> dict[str, int]:
        """How many tensors met each decision."""
        return dict(Counter(row.decision for row in self.rows))


@dataclass(frozen=True)
class OutputAgreement:
    """One output of the written file, with onnxruntime's defaults against every node run as written.

    Attributes:
        output: its name.
        relative, cosine: |difference| / |output| and the cosine; None where shapes differ or nothing is finite.
        judged: whether it must agree; an output after a choice (boxes by their order) need not.
        finite: the defaults bring up no NaN or infinity.
        same_shape: as it says.
    """

    output: str
    relative: float | None
    cosine: float | None
    judged: bool
    finite: bool
    same_shape: bool


@dataclass(frozen=True)
class Proof:
    """What became of the written file in onnxruntime before it got its name: see `pipeline.proof`.

    Attributes:
        default, unoptimised: "ran", "loaded" (no batch could be made), "refused", "failed" or "died"; with "unfused: "
            before it, what Q/DQ as written did in the place of the defaults, with "twin: " the same graph in ordinary
            operators (`graph.qdq.simulated`).
        outputs: how the two agree, where both ran.
        note: why something is not proven.
    """

    default: str
    unoptimised: str
    outputs: tuple[OutputAgreement, ...] = ()
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One `plan` or `run`.

    Attributes:
        pipeline: the canonical text of what ran, presets expanded.
        seed: of everything random.
        input, output: the files; output is None in a plan.
        data: what the calibration source says of itself (`Source.describe`), its `options` and which of them were
            `given`, and `sha256`; None where no data was read.
        steps: the passes in order.
        before, after: the measures of `graph.cost`, in all and for each site. In a plan, `after` is the
            estimate.
        architecture: as recognised in the result.
        warnings: sentences for the user.
        proof: of the written file; None in a plan.
        target, canonical, allow_noop: as in `pipeline.run.RunOptions`.
    """

    pipeline: str
    seed: int
    input: FileFacts
    output: FileFacts | None
    data: Mapping[str, Any] | None
    steps: tuple[StepOutcome, ...]
    before: Cost
    after: Cost
    architecture: Architecture
    warnings: tuple[str, ...] = ()
    proof: Proof | None = None
    target: str | None = None
    canonical: bool = True
    allow_noop: bool = False
