"""What `plan` and `run` begin with: the pipeline made to fit, the model read, refused where it must be, and looked at.

opened                 pipeline and passes in order, the model, its data options; its hash is computed meanwhile
Opening.analysed       the structure of a model that is sound
Opening.observed       the structure as onnxruntime shows it, `canonical` in the pipeline, what the model costs
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpusq_onnx.data import remembered
from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.files import no_file_at, require_apart, require_place
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.cost import open_positions
from gpusq_onnx.graph.model import Model, sum_of, values_of
from gpusq_onnx.graph.snapshot import Snapshot
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.graph.widening import holds_bfloat16
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.pipeline import automatic, table, targets
from gpusq_onnx.pipeline.base import Pass
from gpusq_onnx.pipeline.execute import well_ordered
from gpusq_onnx.pipeline.grammar import Pipeline
from gpusq_onnx.pipeline.outcome import FileFacts
from gpusq_onnx.pipeline.run import RunOptions, widened
from gpusq_onnx.pipeline.summary import Cost, Planned, measure, measure_countable
from gpusq_onnx.runtime.observed import observe
from gpusq_onnx.runtime.ort import Feed
from gpusq_onnx.runtime.trial import Trials


@dataclass
class Opening:
    """A model and the pipeline for it, before any pass.

    Attributes:
        pipeline, passes: as they run on this model.
        came: the model in the types of its file, where `model` is in wider ones.
        settled: the data options, complete.
        file: facts of the model's file, once its hash is known.
        notes: sentences for the user.
    """

    pipeline: Pipeline
    passes: list[Pass[Any]]
    options: RunOptions
    model: Model
    came: Model
    settled: remembered.Settled
    file: Future[FileFacts]
    notes: list[str] = field(default_factory=list)

    def analysed(self, snapshot: Snapshot | None = None) -> Structure:
        """The model's structure. Raises UnsupportedModelError where something is wrong with the model."""
        structure = analyse(self.model, snapshot)
        _require_numbers(self.model, structure)
        invariants.require(self.model)
        return structure

    def observed(self, structure: Structure, sample: Feed | None, trials: Trials) -> tuple[Structure, Cost]:
        """The structure as a run shows it, and what the model costs as it came; the pipeline gets what it lacks."""
        structure = observe(self.model, structure, sample, trials)
        if self.options.canonical:
            self.pipeline, self.passes = automatic.insert(self.pipeline, self.passes, self.model, structure)
        self.notes += _uncounted(structure)
        self.came.observed = self.model.observed
        return structure, self.cost(self.came, structure if self.came is self.model else analyse(self.came))

    def cost(self, model: Model, structure: Structure, planned: Planned | None = None) -> Cost:
        """What the model costs before or after the passes, each time with all weights in sight, or as it is each time.

        Args:
            planned: see `measure`.
        """
        return (measure_countable if self.options.canonical else measure)(model, structure, planned)


@contextmanager
def opened(path: Path, pipeline: Pipeline, options: RunOptions, output: Path | None = None) -> Iterator[Opening]:
    """Read a model for a pipeline; what fails in the block by the model's fault names the file.

    Args:
        output: what will be written; refused where it would touch the model.

    Raises:
        UsageError: an unknown pass, option or target, passes out of order, or an output that cannot be.
        UnsupportedModelError: the file cannot be read.
    """
    pipeline, notes = _fitted(pipeline, options.target)
    passes = well_ordered(table.resolve(pipeline))
    model = io.load(path)
    if output is not None:
        _require_output(output, [path, *io.data_files(model)])
    came = model.clone() if holds_bfloat16(model) else model
    notes += widened(model, passes)
    settled = remembered.settle(options.data, [model.metadata], path.parent)
    with blaming(path), _hashing(path, model) as file:
        yield Opening(pipeline, passes, options, model, came, settled, file, notes)


def _require_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise UsageError unless a file can be written to `output` (and `OUTPUT.data`) without touching an input."""
    for target in (output, io.data_beside(output)):
        require_apart(target, inputs, "the output would overwrite the input", "give another -o/--output")
    if (found := no_file_at(output)) is not None:
        raise UsageError(f"the output is {found}", where=str(output), hint="name a file with -o/--output")
    require_place(output, "the output")


def _file_facts(path: Path, data: Sequence[Path], sha: str) -> FileFacts:
    return FileFacts(str(path), sum(part.stat().st_size for part in (path, *data)), sha)


def _fitted(pipeline: Pipeline, target: str | None) -> tuple[Pipeline, list[str]]:
    """The pipeline with its presets replaced, as the target runs it, and what is to be said of that."""
    pipeline = table.expand(pipeline)
    return (pipeline, []) if target is None else targets.fit(pipeline, target)


def _uncounted(structure: Structure) -> list[str]:
    """That MACs are those of one position, where the model leaves the size of its images open."""
    number = open_positions(structure)
    if not number:
        return []
    what = f"MACs and bit operations count one position for {number} of {len(structure.sites)} weights"
    return [f"{what}: the model leaves the sizes of their outputs open; --data shows them"]


@contextmanager
def _hashing(path: Path, model: Model) -> Iterator[Future[FileFacts]]:
    """The input's facts, its hash computed beside the work in a thread."""
    data = io.data_files(model)
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: _file_facts(path, data, io.file_digest(path, data)))


def _require_numbers(model: Model, structure: Structure) -> None:
    """Refuse NaN in any initializer, and infinity in a weight or its bias (a mask may hold it)."""
    finite = {id(tensor) for site in structure.sites for tensor in (site.weight, site.bias) if tensor is not None}
    for constant in model.constants():
        if np.dtype(constant.dtype).kind not in "fV" or np.isfinite(sum_of(constant)):
            continue
        values = values_of(constant).astype(np.float32, copy=False)
        if np.isnan(values).any() or (id(constant) in finite and not np.isfinite(values).all()):
            raise UnsupportedModelError(
                f"{constant.name!r} holds NaN or infinity",
                where=f"read by {node_label(constant.outputs[0])}" if constant.outputs else None,
                expected="finite numbers",
                found=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} are not",
                hint="the export or the training went wrong: check the original checkpoint",
            )
