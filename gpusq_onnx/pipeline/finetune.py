"""`--finetune`: put the learning passes where the method wants them.

    prune ... [distill] ... quantise ... [qat]

`distill` goes after the last pass that prunes, `qat` after the last one that quantises (GPUSQ-ViT section 3: sparse
float first, then its scales). They are steps like any others from there on: `plan` shows them, they print back, and
`--set` reaches their options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.grammar import Pipeline, Step

LEARNING: Mapping[str, str] = MappingProxyType({"prune": "distill", "quantise": "qat"})


@dataclass(frozen=True)
class TrainingLength:
    """How long each learning pass trains: its option `unit` = `number`."""

    unit: Literal["epochs", "steps"]
    number: int

    @classmethod
    def given(cls, epochs: int | None, steps: int | None) -> TrainingLength | None:
        """What `--finetune` and `--finetune-steps` say; None: neither is given. Raises UsageError for both."""
        if epochs is not None and steps is not None:
            raise UsageError("--finetune and --finetune-steps both say how long to train", hint="give one of them")
        if epochs is not None:
            return cls("epochs", epochs)
        return None if steps is None else cls("steps", steps)

    def step(self, name: str) -> Step:
        """A learning pass."""
        return Step(name, {self.unit: self.number})

    def require(self) -> None:
        """Raise UsageError for a number out of range, EnvironmentLacking where nothing can train."""
        for step in table.resolve(Pipeline(tuple(map(self.step, LEARNING.values())))):
            step.ready()


def insert(pipeline: Pipeline, training: TrainingLength) -> Pipeline:
    """The pipeline (presets expanded) with its learning passes.

    Raises:
        UsageError: nothing prunes or quantises, or a learning pass is in the pipeline already.
    """
    known = table.rows()
    kinds = [table.load(step, known).kind for step in pipeline.steps]
    option = "--finetune" if training.unit == "epochs" else "--finetune-steps"
    if "finetune" in kinds:
        name = pipeline.steps[kinds.index("finetune")].name
        raise UsageError(
            f"the pipeline has a learning pass already: {name!r}",
            where=option,
            found=str(pipeline),
            hint=f"leave {option} out and say --set {name}.{training.unit}={training.number}, or leave {name} out",
        )
    last = {kind: index for index, kind in enumerate(kinds) if kind in LEARNING}
    if not last:
        raise UsageError(
            "there is nothing to fine-tune: no pass of the pipeline prunes or quantises",
            where=option,
            found=str(pipeline),
            hint="e.g. --passes prune24,qdq-int8; on a model treated elsewhere, name the passes: --passes distill",
        )
    steps: list[Step] = []
    for index, (step, kind) in enumerate(zip(pipeline.steps, kinds, strict=True)):
        steps.append(step)
        if last.get(kind) == index:
            steps.append(training.step(LEARNING[kind]))
    return Pipeline(tuple(steps))
