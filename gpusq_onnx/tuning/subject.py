"""A model made ready to be looked into: loaded, its shapes known, `canonical` carried out where it has work to do.

    subject = Subject.of(path, data options)

What is chosen on it is carried out by a pipeline that begins with `subject.first`, so that names stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gpusq_onnx.data import remembered
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.remembered import Settled
from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import held_out
from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.id_ranges import table_rows
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.canonical import spelled_out
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.pipeline import automatic, table
from gpusq_onnx.pipeline.base import Context, PlanContext
from gpusq_onnx.pipeline.doubts import doubts
from gpusq_onnx.pipeline.grammar import Step, parse
from gpusq_onnx.pipeline.proof import require_survival
from gpusq_onnx.pipeline.run import rate_of, sample_of
from gpusq_onnx.runtime.observed import observe
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.trial import Trials


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What sensitivity and tuning look at.

    Attributes:
        path: the model's file, as it came.
        sha256: of the file and its external data.
        model, structure: as passes see it after `first`.
        first: the steps that every pipeline begins with: `canonical`, or none.
        source: the samples that passes work with.
        held: those that are held out; None: none are.
        settled: the data options, complete.
        warnings: sentences about the data.
        rate: seconds that one run of one sample takes; None: it could not be timed.
    """

    path: Path
    sha256: str
    model: Model
    structure: Structure
    first: tuple[Step, ...]
    source: Source
    held: Source | None
    settled: Settled
    warnings: Sequence[str]
    rate: float | None

    @property
    def options(self) -> DataOptions:
        """The data options, complete."""
        return self.settled.options

    def holding_out(self, count: int) -> Subject:
        """The same with `count` of its samples held out. Raises UsageError where none would be left."""
        held, rest = held_out(self.source, count)
        options = self.options.model_copy(update={"hold_out": count})
        return replace(self, source=rest, held=held, settled=replace(self.settled, options=options))

    @classmethod
    def of(cls, path: Path, data: DataOptions) -> Subject:
        """Read a model and open the data.

        Raises:
            UsageError: a missing file, or no data: what layers cost is not known from made-up images.
            UnsupportedModelError, UnsupportedDataError: they cannot be used.
        """
        if data.path is None:
            raise UsageError(
                "what layers cost is measured on data, and there is none",
                where="--data",
                hint="give --data FOLDER; a hundred images without labels will do",
            )
        model = spelled_out(io.load(path))
        sha256 = io.file_digest(path, io.data_files(model))
        settled = remembered.settle(data, [model.metadata], path.parent)
        source = open_source(settled.options, model.inputs(), partial(table_rows, model))
        with Trials() as trials:
            sample = sample_of(source)
            trial = require_survival(model, trials, sample)
            ran = trial.outcome == "ran"
            doubted = doubts(partial(Session, path), source) if ran and settled.guessed else []
            structure = observe(model, analyse(model), sample, trials)
        wanted = parse("prune24,qdq-int8")
        pipeline, passes = automatic.insert(wanted, table.resolve(wanted), model, structure)
        first = pipeline.steps[: len(pipeline.steps) - len(wanted.steps)]
        for step in passes[: len(first)]:
            step.apply(model, structure, step.plan(model, structure, PlanContext()), Context())
            structure = analyse(model)
        warnings = (*settled.warnings, *doubted)
        whole = cls(
            path=path,
            sha256=sha256,
            model=model,
            structure=structure,
            first=first,
            source=source,
            held=None,
            settled=settled,
            warnings=warnings,
            rate=rate_of(trial, sample),
        )
        return whole if data.hold_out is None else whole.holding_out(data.hold_out)
