"""What a pass is: a name, options, and four steps that the manager calls in order.

    requires   may this model be treated at all? Raises with the node, the shape and the remedy.
    plan       what will happen to each tensor, and why: rows. Pure; the dry run, the report and what `apply` obeys.
    apply      the edit that the rows describe, and nothing else.
    ensures    the facts that hold from now on; the manager checks them again after every later pass.

A pass knows the graph, the maths and its context; it never reads files, the clock or the environment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, SerializeAsAny, model_validator

from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph.leftovers import Leftover
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.weight_only import NBITS, nbits_of
from gpusq_onnx.graph.sites import module_path
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.progress import NullProgress, Progress

SKIP = "skip"

Kind = Literal["rewrite", "prune", "quantise", "finetune"]


class PassOptions(BaseModel):
    """Base of every pass's options: unknown keys are errors, values do not change after creation.

    One value for a list means a list of it: `only=fc1` is `only=[fc1]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lists = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) is list}
        return {k: [v] if k in lists and isinstance(v, (str, int, float)) else v for k, v in values.items()}


OptionsT = TypeVar("OptionsT", bound=PassOptions)


@dataclass(frozen=True)
class Detail:
    """Base of what a row holds beside its decision: frozen dataclasses with plain values (`pipeline.details`)."""


@dataclass(frozen=True)
class PlanRow:
    """What will happen to one tensor.

    Attributes:
        tensor: the initializer or activation.
        module: its module path, where the exporter recorded one.
        role: the site's role, or "activation".
        op: the operator that reads it.
        shape: [out, k] of a weight; the activation's shape otherwise.
        decision: "prune", "quantise", ... or "skip".
        reason: one sentence: why.
        detail: what `apply` needs beside; by key where it was read back from a report.
    """

    tensor: str
    module: str
    role: str
    op: str
    shape: tuple[int | str | None, ...]
    decision: str
    reason: str
    detail: dict[str, Any] | SerializeAsAny[Detail] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        """Whether the tensor stays as it is."""
        return self.decision == SKIP


def leftover_row(left: Leftover, shape: Sequence[int | str | None]) -> PlanRow:
    """The row of a product that stays as it is; `shape`: of its constant, or of its result."""
    return PlanRow(left.tensor, module_path(left.node), "product", left.node.op, tuple(shape), SKIP, left.reason)


def leftover_rows(structure: Structure, *, learned: bool = True) -> list[PlanRow]:
    """A row for every product with a constant that is no site, and for every MatMulNBits: it stays as it is.

    Args:
        learned: with those of learned queries, which some passes quantise with their attention core.
    """
    rows = [leftover_row(left, left.shape) for left in structure.leftovers if learned or not left.learned]
    for nbits in nbits_of(structure.flow.nodes):
        reason = f"stored as codes of {nbits.bits} bits: start from the float model"
        rows.append(PlanRow(nbits.weight, nbits.path, "product", NBITS, (nbits.out, nbits.k), SKIP, reason))
    return rows


def require_any(rows: Sequence[PlanRow], what: str, *, else_found: str, hint: str) -> None:
    """Raise NothingMatched, with the rows and their commonest reasons, where all are skipped.

    Args:
        else_found: what is found where there are no rows; `hint`, which is about rows, is left out then.
    """
    if all(row.skipped for row in rows):
        reasons = [reason for reason, _ in Counter(row.reason for row in rows).most_common(4)]
        error = NothingMatched(what, found="; ".join(reasons) or else_found, hint=hint if rows else None)
        error.rows = rows
        raise error


class Fact(Protocol):
    """Something a pass established, which every later pass must leave true."""

    @property
    def text(self) -> str:
        """The fact as a sentence."""
        ...

    def broken(self, model: Model, structure: Structure) -> str | None:
        """What is wrong now, or None while the fact holds."""
        ...


@dataclass(frozen=True)
class Written:
    """What a pass writes, as the table of targets names it (`pipeline.targets`).

    Attributes:
        forms: of Linears: "int8 x int8", "int4 in blocks x float", "MatMulNBits", "fp16".
        patterns: of weights: "2:4".
        narrow_outputs: outputs of sparse Linears have Q/DQ pairs, too.
    """

    forms: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    narrow_outputs: bool = False


@dataclass(frozen=True)
class PlanContext:
    """What a plan may rely on beside the model.

    Attributes:
        data: whether the caller gives calibration data (synthetic images do not count).
        facts: what earlier passes of the same pipeline establish, whether or not they have run yet.
        before: the kinds of pass whose input will be in `Context.before`.
        idle: the kinds of pass that came earlier and had nothing to do.
    """

    data: bool = False
    facts: tuple[Fact, ...] = ()
    before: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()


@dataclass
class Context:
    """What a pass may use beside the model.

    Attributes:
        source: calibration data; None while only planning.
        seed: for everything random.
        progress: where long work reports.
        findings: what the pass measured, for the report; plain values by key.
        warnings: sentences for the user.
        renamed: the new names of sites whose weight the pass stored anew, by the old name: facts about them go on.
        before: by kind, "prune" and "quantise", the model as it was before the first such pass of this pipeline;
            kept only where a pass of kind "finetune" comes later. For looking at and learning from, not for editing.
        folder: for passes of kind "finetune", where checkpoints and logs go (`OUTPUT.training/NUMBER-NAME`, made by the
            pass); the same command, run again after it was cut short, finds it as it was left. Files `checkpoint*` go
            when the output is written, logs stay. None: keep none.
    """

    source: Source | None = None
    seed: int = 0
    progress: Progress = field(default_factory=NullProgress)
    findings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    renamed: dict[str, list[str]] = field(default_factory=dict)
    before: Mapping[str, Model] = field(default_factory=dict)
    folder: Path | None = None


class Pass(ABC, Generic[OptionsT]):
    """One transformation of a model. Subclasses set the class variables and implement the four steps.

    `kind` says what it is to others: `--finetune` puts learning passes after those that prune and quantise. `models`
    are the options of a pass of kind "finetune" that name a model file, each with the kind of pass whose input is taken
    where the option is not given (`Context.before`).

    `Options` is the options' model, and the type parameter the same class: `class Prune24(Pass[Prune24Options])`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "rewrite"
    models: ClassVar[Mapping[str, Literal["prune", "quantise"]]] = MappingProxyType({})
    structural: ClassVar[bool] = False  # later passes see other sites after it: a plan carries it out in memory
    exact: ClassVar[bool] = False  # what comes of it computes what came, to rounding: `proof.require_same` sees to that
    float_only: ClassVar[bool] = False  # it takes no model that a pass of kind "quantise" has quantised
    Options: ClassVar[type[PassOptions]] = PassOptions

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @classmethod
    def same_bytes(cls) -> str:
        """The condition on which the same command on the same input gives the same bytes."""
        machine = "the same kind of CPU and the same library versions"
        if cls.kind == "finetune":
            return f"{machine}, with as many threads (OMP_NUM_THREADS) and processes"
        return f"{machine}, with any number of threads"

    @property
    def needs_data(self) -> bool:
        """Whether `apply` reads calibration data with these options."""
        return False

    def work(self, images: int, data: bool) -> float | None:
        """About as many runs of one image through the model as `apply` takes as long as; see `pipeline.schedule`.

        Args:
            images: that it is given, synthetic ones, too.
            data: whether they are the caller's.

        Returns:
            None where nobody can know.
        """
        return 0.0

    def writes(self) -> Written:
        """What a target must run after this pass."""
        return Written()

    def follows(self, earlier: Pass[Any]) -> str | None:
        """Why it cannot come later in a pipeline than another pass, as a clause about itself; None where it can."""
        quantised = earlier.kind == "quantise" or "quantise" in earlier.models.values()  # a teacher before quantising
        return "takes a float model" if self.float_only and quantised else None

    def ready(self) -> None:
        """Raise EnvironmentLacking or UsageError for what is missing beside the model, before any pass has run."""

    def requires(self, model: Model, structure: Structure) -> None:
        """Raise UnsupportedModelError where the pass cannot work at all."""

    @abstractmethod
    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        """One row for every tensor that the pass considered.

        Raises:
            SelectorUnmatched: a selector without a match.
            NothingMatched: nothing to do: a warning where other passes of the pipeline have.
        """

    @abstractmethod
    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        """Edit the model as the rows that are not skipped say."""

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        """The facts that hold once `apply` has done what the rows say."""
        return []
