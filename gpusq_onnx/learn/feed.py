"""Training data: which images a step takes, how they look, and reading them ahead.

Step s takes the places (s mod n) rows ... of its epoch's order, a permutation that follows from seed and epoch; `rows`
are the images of one step over all processes. A process takes its own stretch of them, part by part.

Feeds that are whole (`Source.whole`) are a part each, as they are: a step takes as many as come nearest to the batch.

Limits: sources without random access are gone through in their own order, without crops, again and again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpusq_onnx.data.prefetch import MOST, ahead
from gpusq_onnx.data.source import Batch, Source
from gpusq_onnx.errors import UnsupportedDataError, UsageError
from gpusq_onnx.learn.augment import Blend, ImageAugmentation, blend, look, mixed, mixed_labels, shown
from gpusq_onnx.learn.objectives import Labels
from gpusq_onnx.learn.settings import TrainingOptions
from gpusq_onnx.tasks.kinds import Kind
from gpusq_onnx.torchgraph.call import fed

TRIES = 10


@dataclass(frozen=True)
class Part:
    """Some images of one step.

    Attributes:
        feed: arrays by input name, batch first; or a whole feed.
        labels: int64[B] or None.
        indices: which samples they are; None from a source without random access.
        places, looks, blends: of each image.
    """

    feed: dict[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64] | None
    places: Sequence[int]
    looks: Sequence[ImageAugmentation]
    blends: Sequence[Blend | None]

    def __len__(self) -> int:
        return len(self.places)

    def tensors(self, names: Sequence[str], device: torch.device) -> list[Tensor]:
        """The named inputs, augmented, on `device`."""
        found = [fed(self.feed[name]).to(device, non_blocking=True) for name in names]
        if self.looks:
            found = [shown(x, self.looks) for x in found]
        if any(self.blends):
            found = [mixed(x, self.places, self.blends) if x.ndim == 4 else x for x in found]
        return found

    def targets(self, device: torch.device) -> Labels | None:
        """Hard labels, where the data has them."""
        if self.labels is None:
            return None
        labels = torch.from_numpy(self.labels).to(device)
        return mixed_labels(labels, self.places, self.blends or [None] * len(self))


def check_labels(labels: NDArray[np.int64] | None, seen: Mapping[str, Tensor], kinds: Mapping[str, Kind]) -> None:
    """Raise UnsupportedDataError for a label that is no class of the logits in `seen`."""
    for name, kind in kinds.items():
        if kind != "logits" or labels is None or name not in seen:
            continue
        classes = seen[name].shape[-1]
        if not 0 <= labels.min() <= labels.max() < classes:
            raise UnsupportedDataError(
                f"a label is no class of the model: {labels.min()} to {labels.max()}",
                expected=f"0 to {classes - 1}",
                hint="is this the classes file that the model was trained with? labels=false leaves labels out",
            )


class Feed:
    """The training images of one process.

    Args:
        source: the data.
        settings: batch, accumulate, labels and augmentation.
        seed: of order and augmentation.
        rank, processes: which stretch of each step is this process's.

    Raises:
        UsageError: batch cannot be split over processes and parts.
        UnsupportedDataError: there are no images, or too few for so many processes.

    `rows` are the images of a step (of whole feeds: about so many), over all processes.
    """

    def __init__(self, source: Source, settings: TrainingOptions, seed: int, rank: int = 0, processes: int = 1) -> None:
        self._source, self._settings, self._seed = source, settings, seed
        self._rank, self._processes = rank, processes
        self._last: tuple[int, NDArray[np.int64]] = -1, np.empty(0, np.int64)
        self._cropped = source.croppable and source.random_access and settings.crop < 1
        self._whole = source.whole
        if self._whole is not None:
            self._divide_feeds(self._whole.count, processes)
            return
        self._parts = settings.accumulate
        shares = processes * self._parts
        if settings.batch % shares:
            raise UsageError(
                f"batch {settings.batch} cannot be split over {processes} processes, {settings.accumulate} parts each",
                where="batch",
                expected=f"a multiple of {shares}",
            )
        self.rows = min(settings.batch, len(source) // shares * shares)
        if not self.rows:
            raise UnsupportedDataError(
                "there are too few images to train with", expected=f"at least {shares}", found=str(len(source))
            )
        self._part = self.rows // shares
        self.per_epoch = len(source) // self.rows

    def _divide_feeds(self, count: int, processes: int) -> None:
        """How many of `count` whole feeds each process takes in a step."""
        if count < processes:
            raise UnsupportedDataError(
                "there are too few feeds to train with", expected=f"at least {processes}", found=str(count)
            )
        rows = len(self._source) / count
        self._parts = min(max(1, round(self._settings.batch / rows / processes)), count // processes)
        self.rows = round(self._parts * processes * rows)
        self.per_epoch = count // (self._parts * processes)

    @property
    def total(self) -> int:
        """Optimiser steps in all."""
        return self._settings.steps or self._settings.epochs * self.per_epoch

    @property
    def notes(self) -> list[str]:
        """What the user should know about the data as it is used."""
        found = []
        if not self._source.random_access:
            found.append(f"{self._source.kind} data is trained on in its own order, without shuffling")
        if self._whole is not None:
            found.append(
                f"{self._source.kind} feeds are run one by one, as they are, and neither joined nor augmented: "
                f"{self._whole.why}"
            )
        elif self._settings.crop < 1 and not self._cropped:
            found.append(f"{self._source.kind} data cannot be cropped: trained without random crops")
        if len(self._source) < self._settings.batch:
            found.append(f"a batch is {self.rows} images: there are no more")
        return found

    def steps(self, start: int, stop: int) -> Iterator[list[Part]]:
        """This process's parts of steps start to stop - 1, read ahead."""
        jobs = ((step, part) for step in range(start, stop) for part in range(self._parts))
        if self._source.random_access:
            workers = max(1, min(MOST, (os.cpu_count() or 1) - 1))
            read: Iterator[Part] = ahead(lambda job: self._read(*job), jobs, workers)
        else:
            read = self._iterate(start, stop)
        for _ in range(start, stop):
            yield [next(read) for _ in range(self._parts)]

    def _places(self, step: int, part: int) -> range:
        first = (step % self.per_epoch) * self.rows + (self._rank * self._parts + part) * self._part
        return range(first, first + self._part)

    def _read(self, step: int, part: int) -> Part:
        epoch, places = step // self.per_epoch, self._places(step, part)
        order = self._order(epoch)
        for shift in range(TRIES):  # where none of a part's images can be read, the next ones are taken
            wanted = {int(order[(place + shift) % len(order)]): place for place in places}
            boxes = [look(self._settings, self._seed, epoch, place).box for place in places] if self._cropped else None
            batch = self._source.read(list(wanted), boxes)
            if batch.size:
                break
        assert batch.indices is not None
        return self._made(batch, epoch, [wanted[int(index)] for index in batch.indices])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        known, order = self._last
        if known != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._source))
            self._last = epoch, order  # one assignment: several threads read it
        return order

    def _made(self, batch: Batch, epoch: int, places: Sequence[int]) -> Part:
        if not batch.size:
            raise UnsupportedDataError("no image of a training batch can be read", where=f"epoch {epoch + 1}")
        settings = self._settings
        looks = [look(settings, self._seed, epoch, p) for p in places] if settings.flip or settings.jitter else []
        blends = [blend(settings, self._seed, epoch, p // 2) for p in places] if settings.mix != "none" else []
        feed = batch.counting(batch.feed)
        labels = batch.labels if settings.takes_labels else None
        return Part(feed, labels, batch.indices, places, looks, blends)

    def _iterate(self, start: int, stop: int) -> Iterator[Part]:
        chunks = _feeds(self._source) if self._whole is not None else _chunks(self._source, self._part)
        mine = range(self._rank * self._parts, (self._rank + 1) * self._parts)
        shares = self._processes * self._parts
        for number in range(stop * shares):
            batch = next(chunks)
            step, share = divmod(number, shares)
            if step < start or share not in mine:
                continue
            if self._whole is not None:
                yield Part(batch.feed, None, None, range(batch.size), (), ())
            else:
                yield self._made(batch, step // self.per_epoch, self._places(step, share - mine.start))


def _feeds(source: Source) -> Iterator[Batch]:
    """The whole feeds of a source, endlessly."""
    while True:
        yield from source.batches(1)


def _chunks(source: Source, size: int) -> Iterator[Batch]:
    """The samples of a source in pieces of `size`, endlessly."""
    held: list[Batch] = []
    while True:
        seen = 0
        for batch in source.batches(size):
            seen += batch.size
            labels = None if batch.labels is None else batch.labels[: batch.size]
            held.append(Batch(batch.counting(batch.feed), labels, batch.size))
            while sum(b.size for b in held) >= size:
                whole = _joined(held)
                yield _cut(whole, 0, size)
                held = [_cut(whole, size, whole.size)] if whole.size > size else []
        if not seen:
            raise UnsupportedDataError("the training data is empty")


def _joined(batches: Sequence[Batch]) -> Batch:
    feed = {name: np.concatenate([b.feed[name] for b in batches]) for name in batches[0].feed}
    labels = [b.labels for b in batches if b.labels is not None]
    return Batch(feed, np.concatenate(labels) if labels else None, sum(b.size for b in batches))


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    labels = None if batch.labels is None else batch.labels[start:stop]
    return Batch({name: rows[start:stop] for name, rows in batch.feed.items()}, labels, stop - start)
