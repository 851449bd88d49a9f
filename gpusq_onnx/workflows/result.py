"""What `plan` and `compress` give back: decisions, totals and warnings to look at, and the new model.

Text (`str`) is the Markdown digest that the command line prints; a notebook shows a table.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import staged
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.pipeline.base import PlanRow
from gpusq_onnx.pipeline.outcome import FileFacts, Outcome, StepOutcome
from gpusq_onnx.report import notebook, run
from gpusq_onnx.report.prediction import Predicted
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.wording import in_callers_words
from gpusq_onnx.workflows import models, samples
from gpusq_onnx.workflows.models import AnyModel, name_of
from gpusq_onnx.workflows.samples import AnyData, AnyOptions

if TYPE_CHECKING:
    from gpusq_onnx.report.checking import CheckResult
    from gpusq_onnx.runtime.compare.gates import Gates


@dataclass(frozen=True, repr=False)
class Plan:
    """What would be done to a model.

    Attributes:
        outcome: everything, as plain values.
        weights: each weight with the kernel that TensorRT can choose for it afterwards.
    """

    outcome: Outcome
    weights: tuple[Predicted, ...] = ()

    @property
    def pipeline(self) -> str:
        """The canonical text of what runs: presets expanded, learning passes inserted."""
        return self.outcome.pipeline

    @property
    def steps(self) -> tuple[StepOutcome, ...]:
        """The passes in order, each with its rows, findings and facts."""
        return self.outcome.steps

    @property
    def rows(self) -> list[PlanRow]:
        """The decision for each tensor, with its reason, of all passes in order."""
        return [row for step in self.outcome.steps for row in step.rows]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for a person: that no data was given is one."""
        return self.outcome.warnings

    @property
    def report(self) -> dict[str, Any]:
        """Plain JSON values: what `--report` writes."""
        return {**run.document(self.outcome), **({"predicted": self.kernels} if self.weights else {})}

    @property
    def kernels(self) -> dict[str, int]:
        """How many weights each kernel class can get."""
        return dict(sorted(Counter(str(weight.kernel) for weight in self.weights).items()))

    def __str__(self) -> str:
        return run.digest(self.outcome, self.weights)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.outcome.input.path}: {self.outcome.pipeline}>"

    def _repr_html_(self) -> str:
        return notebook.html_of(self.outcome)


@dataclass(frozen=True, repr=False, kw_only=True)
class Result(Plan):
    """A model that was compressed.

    Attributes:
        path: the file that was written; of a result in memory a scratch file, which goes when this object goes.
    """

    path: Path
    _original: AnyModel
    _data: AnyData
    _data_options: AnyOptions
    _scratch: Scratch | None = None

    @property
    def plan(self) -> Plan:
        """The decisions alone."""
        return Plan(self.outcome, self.weights)

    @property
    def model(self) -> onnx.ModelProto:
        """The new model with all its weights, read anew each time."""
        return onnx.load(self.path)

    def load(self) -> Model:
        """The new model as passes see it, weights on disk: for another pass, or for looking inside."""
        return io.load(self.path)

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the new model to another place; returns the SHA-256. Raises as `workflows.models.save`."""
        target = Path(path)
        if io.data_beside(self.path).exists():  # whose name is in the model
            return models.save(self.load(), target)
        with staged() as results:
            shutil.copyfile(self.path, results.place(target))
        return io.file_digest(target)

    def check(
        self,
        *,
        data: AnyData = None,
        data_options: AnyOptions = None,
        gates: Gates | Mapping[str, float] | None = None,
        **more: Any,
    ) -> CheckResult:
        """Compare the new model with the one that it came from: see `workflows.check.check`.

        Args:
            data, data_options: no data: that of `compress`, with its options.

        Raises:
            UsageError: no data, where `compress` had it from an iterator, which is at its end now.
        """
        from gpusq_onnx.workflows.check import check

        if data is None:
            if isinstance(self._data, Iterator):
                raise UsageError("the data was an iterator and is at its end", where="check", hint="give data again")
            if data_options is not None:
                raise UsageError("data_options are given without data", where="check", hint="give both, or none")
            data, data_options = self._data, self._data_options
        found = check(self._original, self.path, data=data, data_options=data_options, gates=gates, **more)
        return replace(found, compressed=self.path.name, in_memory=True) if self._scratch else found

    def __getstate__(self) -> dict[str, Any]:
        """For pickle. Raises UsageError for a result in a scratch file, which goes with this object."""
        if self._scratch is not None:
            raise UsageError(
                "a result without a file of its own cannot be pickled",
                where=self.path.name,
                hint="give compress output=FILE, or pickle what save(FILE) wrote",
            )
        return self.__dict__

    def __copy__(self) -> Result:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Result:
        return self


def as_named(outcome: Outcome, model: AnyModel, data: AnyData) -> Outcome:
    """The outcome in the caller's words, with the names that it gave, where something lay in a scratch file."""
    warnings = in_callers_words(outcome.warnings)
    found = replace(outcome, input=_called(outcome.input, name_of(model)), warnings=warnings)
    if outcome.data is None or data is None or isinstance(data, (str, os.PathLike, DataOptions)):
        return found
    options = {**outcome.data["options"], "path": samples.IN_MEMORY}
    return replace(found, data={**outcome.data, "options": options})


def _called(file: FileFacts, name: str) -> FileFacts:
    return replace(file, path=name)
