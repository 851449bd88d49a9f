"""Running statistics of two models' outputs, batch by batch: differences, cosine, agreement of classes.

    cosine            of a sample's flattened output with the reference's; mean and minimum over the samples
    relative          a difference over the range (maximum - minimum) of the reference's output, over all data
    top-1 agreement   share of samples with the same best class in both
    top-5 agreement   share of samples whose best class in the reference is among the candidate's five best

A segmenter's agreement is the share of pixels with the same best class; it has no top-5.

Sums are float64. Elements that are not finite in either are counted, and left out of everything else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.tasks.classification import agreement, confidence, cosine, label_ranks


class OutputsMetric(Protocol):
    """A running metric over a model's outputs by name and what images[N] show: `tasks.detection`, `segmentation`."""

    def update(self, outputs: Mapping[str, NDArray[Any]], truth: NDArray[Any], /) -> None: ...
    def result(self) -> Mapping[str, float]: ...


class Metric(Protocol):
    """A running metric over class scores [N, classes] and labels [N]; `gpusq_onnx.tasks.classification` has one."""

    def update(self, logits: NDArray[Any], labels: NDArray[np.int64]) -> None: ...
    def result(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class OutputDifference:
    """How one output of the candidate differs from the reference's. None where nothing finite could be compared.

    Attributes:
        name: of the output.
        max_abs, mean_abs: absolute differences, over the finite elements of all samples.
        reference_range: maximum - minimum of the reference.
        max_relative, mean_relative: the differences over that range.
        cosine_mean, cosine_min: over the samples.
        nonfinite: elements of the candidate that are NaN or infinite where the reference is finite.
        shape_mismatches: batches whose shapes differ and so were not compared.
    """

    name: str
    max_abs: float | None
    mean_abs: float | None
    reference_range: float | None
    max_relative: float | None
    mean_relative: float | None
    cosine_mean: float | None
    cosine_min: float | None
    nonfinite: int
    shape_mismatches: int


class RunningDifference:
    """Collects an `OutputDifference` over batches."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._max, self._sum, self._elements = 0.0, 0.0, 0
        self._low, self._high = np.inf, -np.inf
        self._cosine_sum, self._cosine_min, self._rows = 0.0, 1.0, 0
        self._nonfinite, self._mismatches = 0, 0
        self._numberless = 0  # elements of the reference that are NaN or infinite

    def update(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Take in one batch of the output, samples along axis 0; any numeric or boolean type."""
        if reference.shape != candidate.shape:
            self._mismatches += 1
            return
        a, b = (
            np.atleast_2d(x.reshape(len(x), -1) if x.ndim else x).astype(np.float64) for x in (reference, candidate)
        )
        finite = np.isfinite(a)
        self._numberless += int(np.count_nonzero(~finite))
        self._nonfinite += int(np.count_nonzero(finite & ~np.isfinite(b)))
        finite &= np.isfinite(b)
        elements = int(np.count_nonzero(finite))
        if not elements:
            return
        self._elements += elements
        self._low = min(self._low, float(a.min(where=finite, initial=np.inf)))
        self._high = max(self._high, float(a.max(where=finite, initial=-np.inf)))
        a[~finite] = b[~finite] = 0.0
        difference = np.abs(a - b)
        self._max = max(self._max, float(difference.max()))
        self._sum += float(difference.sum())
        cosines = cosine(a, b)
        self._cosine_sum += float(cosines.sum())
        self._cosine_min = min(self._cosine_min, float(cosines.min()))
        self._rows += len(cosines)

    @property
    def is_void(self) -> bool:
        """Whether all that the reference gave so far is NaN or infinite."""
        return self._numberless > 0 and not self._elements and not self._nonfinite

    def result(self) -> OutputDifference:
        """The statistics over all batches so far."""
        if not self._elements:
            nothing = (None,) * 7
            return OutputDifference(self._name, *nothing, self._nonfinite, self._mismatches)
        extent, mean = self._high - self._low, self._sum / self._elements
        return OutputDifference(
            name=self._name,
            max_abs=self._max,
            mean_abs=mean,
            reference_range=extent,
            max_relative=self._max / extent if extent else None,
            mean_relative=mean / extent if extent else None,
            cosine_mean=self._cosine_sum / self._rows,
            cosine_min=self._cosine_min,
            nonfinite=self._nonfinite,
            shape_mismatches=self._mismatches,
        )


class Agreement(TypedDict):
    """What `RunningAgreement` found; the fields of `Comparison` with these names."""

    top1_agreement: float | None
    top5_agreement: float | None
    reference_metrics: dict[str, float] | None
    candidate_metrics: dict[str, float] | None
    reference_confidence: float | None
    classes: int | None


class RunningAgreement:
    """Collects agreement of classes, and both models' metrics where there are labels.

    Args:
        metric: makes an empty metric; None for none.
    """

    def __init__(self, metric: Callable[[], Metric] | None) -> None:
        self._metrics = (metric(), metric()) if metric else None
        self._decided, self._samples, self._same, self._among, self._labelled = 0, 0, 0, 0, 0
        self._confidence, self._classes = 0.0, 0

    def update(self, reference: NDArray[Any], candidate: NDArray[Any], labels: NDArray[np.int64] | None) -> None:
        """Take in one batch of scores [N, classes] and, where known, labels [N]; or scores [N, classes, H, W]."""
        self._decided += reference[:, 0].size
        self._same += agreement(reference, candidate)
        if reference.ndim > 2:
            return
        self._samples += len(reference)
        self._confidence += float(np.nansum(confidence(reference)))
        self._classes = reference.shape[1]
        self._among += int(np.count_nonzero(label_ranks(candidate, reference.argmax(axis=1)) < 5))
        if self._metrics and labels is not None:
            self._labelled += len(labels)
            for metric, scores in zip(self._metrics, (reference, candidate), strict=True):
                metric.update(scores, labels)

    def result(self) -> Agreement:
        """The statistics over all batches so far."""
        metrics = (
            [dict(metric.result()) for metric in self._metrics] if self._metrics and self._labelled else [None, None]
        )
        return Agreement(
            top1_agreement=self._same / self._decided if self._decided else None,
            top5_agreement=self._among / self._samples if self._samples else None,
            reference_metrics=metrics[0],
            candidate_metrics=metrics[1],
            reference_confidence=self._confidence / self._samples if self._samples else None,
            classes=self._classes or None,
        )
