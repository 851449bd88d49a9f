"""A candidate model against its reference on the same data: per output, and per class where it classifies.

Both run on onnxruntime, through Polygraphy's runner, with Q and DQ nodes executed as written. Batches stream and only
running sums are kept (`difference.py`), so memory does not grow with the data. Polygraphy's own comparison is not used:
its Comparator keeps all outputs of the first runner, and its compare functions take medians, 50 times the work.

Agreement and accuracy are given for models with exactly one output, of shape [N, classes]; others are compared output
by output.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.runtime.difference import Metric, OutputDifference, RunningAgreement, RunningDifference
from gpusq_onnx.runtime.ort import Session, running


class Batch(Protocol):
    """What `gpusq_onnx.data` yields: arrays by input name, labels where there are any, and the number of samples.

    A last batch that is short of a fixed size is filled up in `feed`; `size` and `labels` leave the filling out.
    """

    @property
    def feed(self) -> Mapping[str, NDArray[Any]]: ...
    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    @property
    def size(self) -> int: ...


class Source(Protocol):
    """Data that can be read in batches of a given size, the last one possibly short."""

    def batches(self, batch: int) -> Iterable[Batch]: ...


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; fractions, not percentages. None: not a classifier, or no labels (or no metric) given."""

    samples: int
    outputs: list[OutputDifference]
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    reference_metrics: dict[str, float] | None = None
    candidate_metrics: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


def compare(
    reference: Path | str,
    candidate: Path | str,
    source: Source,
    *,
    metric: Callable[[], Metric] | None = None,
    batch: int = 8,
    progress: Callable[[int], object] = lambda samples: None,
) -> Comparison:
    """Run both models on all of `source` and compare their outputs.

    Args:
        reference, candidate: ONNX files with the same inputs and outputs.
        source: read once, in batches of `batch`, or of the batch size that the models have fixed.
        metric: makes an empty running metric; used for classifiers when the data has labels.
        progress: told the number of samples of each batch when it is done.

    Raises:
        UnsupportedModelError: onnxruntime cannot load or run one, or their inputs or outputs differ.
        UnsupportedDataError: the data does not fit the models, or there is none.
    """
    from polygraphy.backend.onnxrt import OnnxrtRunner

    first, second = (Session(path, exact_qdq=True) for path in (reference, candidate))
    _check_interfaces(first, second)
    fixed = _common_batch(first, second)
    differences = {info.name: RunningDifference(info.name) for info in first.outputs()}
    classes = RunningAgreement(metric) if _classifies(first) and _classifies(second) else None
    samples = 0
    with OnnxrtRunner(first.handle) as first_runner, OnnxrtRunner(second.handle) as second_runner:
        for piece in source.batches(fixed or batch):
            first.check_names(piece.feed)
            with running(first.name):
                expected = first_runner.infer(piece.feed, check_inputs=False)
            with running(second.name):
                found = second_runner.infer(piece.feed, check_inputs=False)
            for name, difference in differences.items():
                a, b = (_counted(output[name], piece, fixed) for output in (expected, found))
                difference.update(a, b)
                if classes:
                    classes.update(a, b, piece.labels)
            samples += piece.size
            progress(piece.size)
    if not samples:
        raise UnsupportedDataError("there is no data to compare the models on")
    agreement = (classes or RunningAgreement(None)).result()
    return Comparison(samples, [difference.result() for difference in differences.values()], **agreement)


def _check_interfaces(reference: Session, candidate: Session) -> None:
    """Same inputs by name and type, same outputs by name; shapes may differ (a fixed against a free batch)."""
    pairs = {
        "inputs": [[f"{info.name} {info.dtype}" for info in session.inputs()] for session in (reference, candidate)],
        "outputs": [[info.name for info in session.outputs()] for session in (reference, candidate)],
    }
    for kind, (expected, found) in pairs.items():
        if sorted(expected) != sorted(found):
            raise UnsupportedModelError(
                f"the two models' {kind} differ",
                where=f"{reference.name}, {candidate.name}",
                expected=", ".join(expected),
                found=", ".join(found),
                hint="compare a model with one made from it",
            )


def _common_batch(reference: Session, candidate: Session) -> int | None:
    sizes = {reference.fixed_batch, candidate.fixed_batch} - {None}
    if len(sizes) > 1:
        raise UnsupportedModelError(
            "the two models have fixed different batch sizes",
            expected=f"{reference.fixed_batch} as in {reference.name}",
            found=f"{candidate.fixed_batch} in {candidate.name}",
        )
    return sizes.pop() if sizes else None


def _counted(output: NDArray[Any], piece: Batch, fixed: int | None) -> NDArray[Any]:
    """The output without the rows that filled a fixed batch up."""
    return output[: piece.size] if output.ndim and len(output) == fixed else output


def _classifies(session: Session) -> bool:
    outputs = session.outputs()
    return (
        len(outputs) == 1 and outputs[0].dtype.kind == "f" and len(outputs[0].shape) == 2 and outputs[0].shape[1] != 1
    )
