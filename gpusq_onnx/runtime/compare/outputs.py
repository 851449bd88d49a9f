"""A candidate model against its reference on the same data: per output, per tap, per class where it classifies.

Models run through Polygraphy's runners: ONNX files on onnxruntime, with Q and DQ nodes executed as written, engines on
TensorRT (`engine.py`). Batches stream and only running sums are kept (`difference.py`, `taps.py`), so memory does not
grow with the data. Polygraphy's own comparison is not used: its Comparator keeps all outputs of the first runner, and
its compare functions take medians, 50 times the work.

Agreement is given for models with exactly one output, of shape [N, classes] or [N, classes, H, W], accuracy for the
former; others are compared output by output. Where the images are annotated or have label maps, `judge` scores both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.runtime.compare.difference import (
    Metric,
    OutputDifference,
    OutputsMetric,
    RunningAgreement,
    RunningDifference,
)
from gpusq_onnx.runtime.compare.taps import RunningTap, Tap, TapDifference
from gpusq_onnx.runtime.ort import Fed, Feed, Infer, Session, TensorInfo, check_names
from gpusq_onnx.tasks.kinds import output_kinds

Outputs = Mapping[str, NDArray[Any]]


class ComparedBatch(Protocol):
    """What `gpusq_onnx.data` yields: arrays by input name, labels or truth where there are any, the number of samples.

    A last batch that is short of a fixed size is filled up in `feed`; `size`, `labels` and `truth` leave it out.
    """

    @property
    def feed(self) -> Mapping[str, NDArray[Any]]: ...
    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    @property
    def truth(self) -> NDArray[Any] | None: ...
    @property
    def size(self) -> int: ...


class ComparedData(Protocol):
    """Data that can be read in batches of a given size, the last one possibly short."""

    def batches(self, batch: int) -> Iterable[ComparedBatch]: ...


class Loaded(Fed, Protocol):
    """A model that can run: `ort.Session`, or `engine.Engine`."""

    @property
    def fixed_batch(self) -> int | None: ...
    @property
    def max_batch(self) -> int | None: ...
    def outputs(self) -> list[TensorInfo]: ...
    def opened(self) -> AbstractContextManager[Infer]: ...


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; fractions, not percentages. None: no classifier (or detector), no truth, or no metric.

    Attributes:
        samples: how many were compared.
        top1_agreement, top5_agreement: the share of samples with the reference's best class, or with it among the five.
        reference_metrics, candidate_metrics: against the truth, by name.
        reference_confidence: the mean softmax probability of the reference's best class.
        classes: how many there are.
        default: the same for the candidate in a session with onnxruntime's defaults.
    """

    samples: int
    outputs: list[OutputDifference]
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    reference_metrics: dict[str, float] | None = None
    candidate_metrics: dict[str, float] | None = None
    reference_confidence: float | None = None
    classes: int | None = None
    taps: tuple[TapDifference, ...] = ()
    default: "Comparison | None" = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


def compare(
    reference: Path | str | Loaded,
    candidate: Path | str | Loaded,
    source: ComparedData,
    *,
    metric: Callable[[], Metric] | None = None,
    judge: Callable[[], OutputsMetric] | None = None,
    batch: int = 8,
    taps: Sequence[Tap] = (),
    default: Loaded | None = None,
    progress: Callable[[int], object] = lambda samples: None,
    on_batch: Callable[[Feed, Outputs, Outputs], object] = lambda feed, expected, found: None,
) -> Comparison:
    """Run both models on all of `source` and compare their outputs.

    Args:
        reference, candidate: ONNX files, or models loaded already, with the same inputs and outputs.
        source: read once, in batches of `batch`, or of the batch size that the models have fixed.
        metric: makes an empty running metric; used for classifiers when the data has labels.
        judge: the same over all outputs; used when the data has a truth.
        taps: inner tensors to compare, which both models must give as outputs, too.
        default: the candidate loaded with onnxruntime's defaults, which is compared with the reference, too.
        progress: receives the number of samples of each batch when it is done.
        on_batch: receives each batch with both models' outputs; they are valid during the call only.

    Raises:
        UnsupportedModelError: a model cannot be loaded or run, or their inputs or outputs differ; or all that the
            reference gives is NaN or infinite.
        UnsupportedDataError: the data does not fit the models, or there is none.
    """
    first, second = (_loaded(model) for model in (reference, candidate))
    _check_interfaces(first, second)
    fixed = common_batch(first, second)
    most = min(size for size in (batch, first.max_batch, second.max_batch) if size)
    looks = {tap.name: RunningTap(tap) for tap in taps}
    sides = [_Side(first, second, looks, metric, judge)]
    if default is not None:
        sides.append(_Side(first, default, looks, metric, None))
    samples = 0
    with ExitStack() as stack:
        run_first, *runs = [stack.enter_context(model.opened()) for model in (first, *(side.model for side in sides))]
        for piece in source.batches(fixed or most):
            check_names(piece.feed, first)
            expected = run_first(_as_taken(piece.feed, first))
            for run, side in zip(runs, sides, strict=True):
                found = run(_as_taken(piece.feed, side.model))
                side.update(expected, found, piece, fixed)
                if side is sides[0]:
                    for name, look in looks.items():
                        look.update(*(_counted(output[name], piece, fixed) for output in (expected, found)))
                    on_batch(piece.feed, expected, found)
            samples += piece.size
            progress(piece.size)
    if not samples:
        raise UnsupportedDataError("there is no data to compare the models on")
    sides[0].require_numbers()
    compared, *others = [side.result(samples) for side in sides]
    return replace(
        compared, taps=tuple(look.result() for look in looks.values()), default=others[0] if others else None
    )


class _Side:
    """What is collected of one candidate against the reference."""

    def __init__(
        self,
        reference: Loaded,
        model: Loaded,
        looks: Mapping[str, object],
        metric: Callable[[], Metric] | None,
        judge: Callable[[], OutputsMetric] | None,
    ) -> None:
        self.model = model
        self._differences = {i.name: RunningDifference(i.name) for i in reference.outputs() if i.name not in looks}
        classifies = _classifies(reference, looks) and _classifies(model, looks)
        self._classes = RunningAgreement(metric) if classifies else None
        self._judges = (judge(), judge()) if judge else ()

    def update(self, expected: Outputs, found: Outputs, piece: ComparedBatch, fixed: int | None) -> None:
        """Take in one batch of the reference's and the candidate's outputs."""
        for name, difference in self._differences.items():
            a, b = (_counted(output[name], piece, fixed) for output in (expected, found))
            difference.update(a, b)
            if self._classes:
                self._classes.update(a, b, piece.labels)
        if piece.truth is not None:
            for judged, outputs in zip(self._judges, (expected, found), strict=False):
                judged.update({name: _counted(outputs[name], piece, fixed) for name in self._differences}, piece.truth)

    def require_numbers(self) -> None:
        """Refuse a reference that computes nothing."""
        void = [name for name, difference in self._differences.items() if difference.is_void]
        if void and len(void) == len(self._differences):
            raise UnsupportedModelError(
                "the reference gives nothing but NaN or infinities, so nothing can be compared with it",
                where=f"outputs {', '.join(void)}",
                expected="finite numbers",
                hint="weights, FP16 that overflows, or inputs on another scale (--mean, --std): run it on one image",
            )

    def result(self, samples: int) -> Comparison:
        """The statistics over all batches."""
        classes = (self._classes or RunningAgreement(None)).result()
        if self._judges:
            before, after = (dict(judged.result()) for judged in self._judges)
            classes |= {"reference_metrics": before, "candidate_metrics": after}
        return Comparison(samples, [difference.result() for difference in self._differences.values()], **classes)


def _loaded(model: Path | str | Loaded) -> Loaded:
    return Session(model, exact_qdq=True) if isinstance(model, (Path, str)) else model


def _check_interfaces(reference: Loaded, candidate: Loaded) -> None:
    """Same inputs by name and type, same outputs by name; shapes (a fixed batch) and widths of floats may differ."""
    pairs = {
        "inputs": [[f"{info.name} {_kind(info)}" for info in session.inputs()] for session in (reference, candidate)],
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


def _kind(info: TensorInfo) -> str:
    return "float" if info.dtype.kind == "f" else str(info.dtype)


def _as_taken(feed: Feed, model: Loaded) -> Feed:
    """The feed with floats as wide as the model takes them."""
    wanted = {info.name: info.dtype for info in model.inputs()}
    return {name: x.astype(wanted[name], copy=False) if x.dtype.kind == "f" else x for name, x in feed.items()}


def common_batch(reference: Loaded, candidate: Loaded) -> int | None:
    """The batch size that one of the models, or both, have fixed. Raises UnsupportedModelError where they differ."""
    sizes = {reference.fixed_batch, candidate.fixed_batch} - {None}
    if len(sizes) > 1:
        raise UnsupportedModelError(
            "the two models have fixed different batch sizes",
            expected=f"{reference.fixed_batch} as in {reference.name}",
            found=f"{candidate.fixed_batch} in {candidate.name}",
        )
    return sizes.pop() if sizes else None


def _counted(output: NDArray[Any], piece: ComparedBatch, fixed: int | None) -> NDArray[Any]:
    """The output without the rows that filled a fixed batch up."""
    return output[: piece.size] if output.ndim and len(output) == fixed else output


def _classifies(model: Loaded, taps: Mapping[str, object]) -> bool:
    """Whether the only output has class scores, of images or of pixels."""
    outputs = [info for info in model.outputs() if info.name not in taps]
    if len(outputs) != 1 or outputs[0].dtype.kind != "f" or len(outputs[0].shape) < 2 or outputs[0].shape[1] == 1:
        return False
    return output_kinds({"": outputs[0].shape})[""] in ("logits", "pixels")
