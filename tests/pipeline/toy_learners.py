"""Learning passes that learn nothing: they nudge the weights, and write down which teacher they were given."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.base import Context, Pass, PassOptions, PlanContext, PlanRow


class ToyOptions(PassOptions):
    """As the real ones have them, and a way to fail."""

    epochs: int | None = Field(None, ge=1, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="steps")
    teacher: Path | None = Field(None, description="the model to learn from")
    dense: Path | None = Field(None, description="another one")
    fail: bool = Field(False, description="break down at the end")


class Learner(Pass[ToyOptions]):
    """Multiplies each float weight by 1.25, which keeps zeros and moves scales by nothing that matters here."""

    summary, source, kind = "nudges", "a test", "finetune"
    Options = ToyOptions

    @property
    def needs_data(self) -> bool:
        return True

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        if self.options.teacher is None and self.models["teacher"] not in given.before:
            raise UsageError("no teacher")
        return [PlanRow(s.name, s.path, s.role, s.op, (s.out, s.k), "train", "a test") for s in structure.sites]

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        own = self.options.teacher
        teacher = io.load(own) if own is not None else context.before[self.models["teacher"]]
        seen = analyse(teacher).sites
        context.findings["teacher_zeros"] = float(np.mean([np.mean(site.read() == 0) for site in seen]))
        context.findings["teacher_sum"] = float(sum(np.abs(site.read()).sum(dtype=np.float64) for site in seen))
        for site in structure.sites:
            site.write((site.read() * np.float32(1.25)).astype(np.float32))
        assert context.source is not None and context.folder is not None
        context.findings["images"] = len(context.source)
        context.folder.mkdir(parents=True, exist_ok=True)
        context.warnings.append("it was only a toy")
        for name in ("checkpoint.bin", "log.jsonl"):
            (context.folder / name).write_text("kept while it runs")
        context.findings["folder"] = str(context.folder)
        if self.options.fail:
            raise ArithmeticError("the loss is NaN")


class Distill(Learner):
    """Behind pruning."""

    name, models = "distill", MappingProxyType({"teacher": "prune"})


class Qat(Learner):
    """Behind quantising."""

    name, models = "qat", MappingProxyType({"teacher": "quantise", "dense": "prune"})


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them into the table under the real names."""
    toys: dict[str, Any] = {p.name: f"{__name__}:{p.__name__}" for p in (Distill, Qat)}
    monkeypatch.setattr(table, "BUILTIN", {**table.BUILTIN, **toys})
