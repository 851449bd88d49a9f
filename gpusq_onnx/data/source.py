"""Where tensors come from: one interface over folders of images, arrays, scripts and synthetic images.

A source streams: memory is a few batches, whatever the number of samples. The same options
and seed give the same samples in the same order on every machine, and a source can be gone through many times.

Two ways in: `batches` goes through all samples in order, for calibration and testing; `read` takes samples by index,
cut to a random box if wanted, for training (`prefetch.stream` does it ahead, in background threads).

Axis 0 of every model input is the batch, except in feeds that are whole (`Source.whole`). A static batch B is kept by
`batches`: they then hold B rows, the last one filled up by repeating its last sample (`Batch.size` says how many rows
count). `read` gives what was asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UnsupportedDataError, UsageError


class Described(Protocol):
    """What anybody calls a model's input: its name, type and shape."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int | str | None, ...]: ...


@dataclass(frozen=True)
class InputSpec:
    """One model input: its name, NumPy dtype, and shape; a dimension that is no int is dynamic."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def static_batch(self) -> int | None:
        """The fixed size of axis 0, or None when it is dynamic."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else None

    def takes(self, shape: Sequence[int], *, any_batch: bool = False) -> bool:
        """Whether an array of this shape fits; `any_batch` leaves axis 0 out."""
        if len(shape) != len(self.shape):
            return False
        start = 1 if any_batch else 0
        pairs = zip(self.shape[start:], shape[start:], strict=True)
        return all(want == have for want, have in pairs if isinstance(want, int))

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {self.dtype.name} [{dims}]"


@dataclass(frozen=True)
class ImageInputs:
    """The model inputs that images feed.

    Attributes:
        image: takes the pixels.
        sizes: [N, 2], width and height in pixels of the image as it was, where the model has an input named SIZES.
    """

    image: InputSpec
    sizes: InputSpec | None = None

    def feed(self, rows: NDArray[Any], sizes: Sequence[tuple[int, int]]) -> dict[str, NDArray[Any]]:
        """Prepared images, and the (width, height) of each, as arrays by input name."""
        if self.sizes is None:
            return {self.image.name: rows}
        return {self.image.name: rows, self.sizes.name: np.array(sizes, self.sizes.dtype).reshape(-1, 2)}


SIZES = "orig_target_sizes"  # in the exports of RT-DETR, D-FINE and DEIM
"""The input that tells a detector how large each image was."""
LARGEST_BATCH = 1 << 31  # bytes of an input that one call may be fed


@dataclass(frozen=True)
class Batch:
    """One run of the model.

    Args:
        feed: arrays by input name, axis 0 the batch.
        labels: int64[size] class indices, or None.
        size: rows that count; rows beyond it (static batch, last batch) repeat the last sample: drop them from outputs.
        indices: int64[size], which samples of the source the rows are (corrupt ones are left out); None from a script.
        truth: what the images show: int64[size], their ids in the annotations, or uint8[size, H, W], a class for each
            pixel of the input; None without either.
    """

    feed: dict[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    size: int
    indices: NDArray[np.int64] | None = None
    truth: NDArray[Any] | None = None

    @property
    def rows(self) -> int:
        """Rows of the feed, with those beyond `size`."""
        return len(next(iter(self.feed.values())))

    def counting(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The rows that count of inputs or outputs; what has no batch axis stays as it is."""
        return {name: x[: self.size] if x.ndim and len(x) == self.rows else x for name, x in values.items()}

    def filled(self, static: int | None) -> Batch:
        """The same with every input as long as a static batch; see `fill_up`."""
        return replace(self, feed={name: fill_up(rows, static) for name, rows in self.feed.items()})


@dataclass(frozen=True)
class WholeFeeds:
    """Feeds that are one run of the model each: their rows are no samples, to be divided or joined with others'.

    Args:
        count: how many there are.
        why: what keeps them apart, as in "axis 0 differs: 1 and 2".
        resized: whether they differ in size, besides axis 0.
    """

    count: int
    why: str
    resized: bool = False


@dataclass(frozen=True)
class Box:
    """A part of an image that becomes the model's input, without knowing the image's size (RandomResizedCrop).

    Args:
        area: its share of the image's area, in (0, 1].
        aspect: its width / height in pixels, relative to the model input's; 1 distorts nothing.
        x, y: where it lies, 0 at the left or top edge, 1 at the right or bottom edge.
    """

    area: float = 1.0
    aspect: float = 1.0
    x: float = 0.5
    y: float = 0.5

    def pixels(self, size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in an image of `size` (width, height) for an input of `target` (width, height).

        A side that would be longer than the image's is cut to it; the other keeps its length.
        """
        (width, height), aspect = size, self.aspect * target[0] / target[1]
        w = min(width, max(1.0, (self.area * width * height * aspect) ** 0.5))
        h = min(height, max(1.0, (self.area * width * height / aspect) ** 0.5))
        left, top = self.x * (width - w), self.y * (height - h)
        return left, top, left + w, top + h


class Source(ABC):
    """Samples for calibration or testing. `len()` is the number chosen, corrupt images included."""

    kind: str
    labelled: bool = False
    labels: NDArray[np.int64] | None = None  # [len], the class index of each sample
    annotations: Mapping[str, Any] | None = None  # of the images, as `coco.read_annotations` gives them
    segmented: bool = False  # there is a class for each pixel
    input_size: tuple[int, int] = (0, 0)  # height and width of the images as the model sees them
    static_batch: int | None = None  # rows of every batch, where the model fixes them
    random_access: bool = True
    croppable: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, batch: int) -> Iterator[Batch]:
        """Go through all samples in order, `batch` at a time (or the model's static batch). Re-iterable, streaming.

        Raises UnsupportedDataError on what only shows when the data is read.
        """

    @property
    def truths(self) -> frozenset[str]:
        """The metrics that the samples have a truth for, by the keys of reports."""
        has = {"top1": self.labelled, **dict.fromkeys(("AP", "mask_AP"), self.annotations is not None)}
        return frozenset(metric for metric, known in {**has, "mIoU": self.segmented}.items() if known)

    def read(self, indices: Sequence[int], boxes: Sequence[Box] | None = None) -> Batch:
        """The samples `indices` (0 to len - 1, any order, repeats allowed), as they come out of `batches`.

        A row a sample, also where the model's batch is static; corrupt images are left out (`Batch.indices`), so a
        batch may hold fewer rows, or none. May be called from several threads at once.

        Args:
            boxes: as many as indices, where `croppable`: the image's part that is resized to the input.

        Raises:
            UsageError: not `random_access`, or boxes and not `croppable`.
            UnsupportedDataError: as `batches`.
        """
        raise UsageError(
            f"{self.kind} data cannot be read by index", hint="go through it in order, or save it as an .npz first"
        )

    def name(self, index: int) -> str:
        """What sample `index` is called: for errors, notes and captions."""
        return f"sample {index}"

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) of the content used: names and bytes, in order. No path outside the data, time or host."""

    @property
    def whole(self) -> WholeFeeds | None:
        """That every batch is one run of the model as it is, and why; None where rows are samples."""
        return None

    @property
    def skipped(self) -> list[str]:
        """Corrupt images met so far, `name: reason`, in reading order."""
        return []

    @property
    def notes(self) -> list[str]:
        """What the caller should tell the user about the data; some notes appear only once it has been read."""
        return []

    def describe(self) -> dict[str, Any]:
        """Plain JSON values for the report: what was used and how it was prepared, after defaults were filled in."""
        return {
            "kind": self.kind,
            "samples": len(self),
            "labelled": self.labelled,
            "skipped": self.skipped,
            "notes": self.notes,
        }


def image_inputs(inputs: Sequence[InputSpec], what: str) -> ImageInputs:
    """The inputs that images feed; raises UnsupportedDataError where images alone cannot feed the model."""
    sizes = next((spec for spec in inputs if spec.name == SIZES and spec.takes((1, 2), any_batch=True)), None)
    others = [spec for spec in inputs if spec is not sizes]
    if len(others) == 1:
        return ImageInputs(others[0], sizes)
    raise UnsupportedDataError(
        f"{what} can feed a model with one image input only",
        expected=f"1 input, or 2 where one is {SIZES} [N, 2]",
        found="; ".join(str(spec) for spec in inputs) or "no inputs",
        hint="give an .npz with one array per input name, or a Polygraphy script whose load_data() yields feed dicts",
    )


def fill_up(rows: NDArray[Any], static: int | None) -> NDArray[Any]:
    """rows[n, ...] as rows[static, ...] by repeating the last one; unchanged when the batch is dynamic or full.

    Raises:
        UnsupportedDataError: such a batch is larger than `LARGEST_BATCH`.
    """
    if static is None or len(rows) == static:
        return rows
    size = rows[0].nbytes * static
    if size > LARGEST_BATCH:
        raise UnsupportedDataError(
            f"the model fixes a batch of {static}, which no machine feeds",
            expected=f"at most {LARGEST_BATCH >> 30} GiB an input",
            found=f"{size / 2**30:.0f} GiB",
            hint="export it with a batch of 1, or a free one",
        )
    return np.concatenate([rows, np.repeat(rows[-1:], static - len(rows), axis=0)])


def check_finite(name: str, rows: NDArray[Any], where: str) -> None:
    """Raise UnsupportedDataError when `rows` holds NaN or infinity: one such value would spoil every scale."""
    if rows.dtype.kind in "iub" or bool(np.isfinite(rows).all()):
        return
    raise UnsupportedDataError(
        f"input {name!r} holds NaN or infinity", where=where, expected="finite values", hint="remove those samples"
    )


def common_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The batch that the model fixes, None where it is free.

    Raises:
        UnsupportedDataError: an input has no axis 0, or fixes it at another size than the first that fixes it: it is no
            batch, and rows of arrays cannot feed it.
    """
    why = no_common_batch(inputs)
    if why:
        raise UnsupportedDataError(
            f"the model's inputs have no batch in common: {why}",
            expected="axis 0 of every input is the batch",
            found="; ".join(map(str, inputs)),
            hint="give a Polygraphy script whose load_data() yields whole feed dicts: --data load_data.py",
        )
    return next((spec.static_batch for spec in inputs if spec.static_batch), None)


def no_common_batch(inputs: Sequence[InputSpec], *, named: bool = False) -> str:
    """Why axis 0 of the inputs is not one batch; "" where it may be.

    Args:
        named: a dynamic axis is not the one that another input fixes, nor one of another name, or of none: what matters
            where the caller's arrays have lengths already.
    """
    lone = next((spec.name for spec in inputs if not spec.shape), None)
    if lone is not None:
        return f"input {lone!r} has no axis 0"
    sizes = [spec.shape[0] for spec in inputs if named or spec.static_batch is not None]
    if len(sizes) > 1 and None in sizes:
        return "axis 0 has no name that all inputs share"
    return differing(sizes)


def differing(sizes: Iterable[int | str | None]) -> str:
    """How sentences say that the inputs' first axes are of several sizes, or have several names; "" for one."""
    several = list(dict.fromkeys(map(str, sizes)))
    return f"axis 0 differs: {' and '.join(several)}" if len(several) > 1 else ""


def whole_feed(arrays: Mapping[str, NDArray[Any]]) -> Batch:
    """One run of the model, as a batch of as many rows as its first input with an axis 0 has; that one is put first."""
    feed = dict(sorted(arrays.items(), key=lambda item: not item[1].ndim))
    return Batch(feed, None, next((len(array) for array in feed.values() if array.ndim), 1))


def require_whole(kind: str, boxes: Sequence[Box] | None) -> None:
    """Raise UsageError when boxes are asked of tensors that go in as they are."""
    if boxes is not None:
        raise UsageError(f"{kind} go in as they are and cannot be cropped", hint="augment images, or none")


def ready_made(options: DataOptions, what: str) -> list[str]:
    """The note that tensors go in as they are, when the caller gave options that are for images."""
    given = sorted(options.model_fields_set - {"path", "samples", "calibrate", "hold_out", "seed"})
    return [f"{what} go in as they are: {', '.join(given)} not applied"] if given else []


def too_few(asked: int | None, available: int) -> list[str]:
    """The note that there are fewer samples than the caller asked for."""
    if asked is None or asked <= available:
        return []
    return [f"{asked} samples asked for, {available} there are: all of them are used"]
