"""How far a student is from its teacher, image by image as they are: no crops, no mixing, no gradients.

    agreement   share of images (queries, pixels) on which both name the same class
    soft        the soft-label loss, as in training
    D_i         L_feat_i of each critical map over all images: sum_b agree_b l_i[b] / max(1, sum_b agree_b)

Source: docs/method.md, "Losses". Images are spread evenly over the data; each process takes every n-th batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpusq_onnx.data.prefetch import stream
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UnsupportedDataError
from gpusq_onnx.learn.hardware import Hardware
from gpusq_onnx.learn.history import StudentComparison
from gpusq_onnx.learn.objectives import Objective, Outputs
from gpusq_onnx.learn.readings import Reading, reading
from gpusq_onnx.learn.setup import Setup
from gpusq_onnx.pipeline.schedule import LOOKING
from gpusq_onnx.progress import Progress
from gpusq_onnx.tasks.kinds import CLASSES
from gpusq_onnx.torchgraph.call import fed

BATCH = 8  # no more images at once than a training step holds by default


@torch.no_grad()
def compare(
    setup: Setup,
    source: Source,
    objective: Objective,
    hardware: Hardware,
    images: int,
    progress: Progress,
    label: str,
) -> StudentComparison:
    """Student and teacher over about `images` images. Raises UnsupportedDataError where there are none."""
    maps = len(objective.maps)
    sums = torch.zeros(3 + 2 * maps, dtype=torch.float64)  # images, agreement, soft, then numerators, denominators
    alone = replace(objective, add=lambda value: value, processes=1)  # batches differ in number between processes
    count = min(images, len(source))
    progress.start(label, count, LOOKING * count)
    for number, (feed, rows) in enumerate(clean(source, images)):
        progress.advance(rows)
        if number % hardware.processes != hardware.rank:
            continue
        with hardware.autocast():
            seen = _answers(setup, feed, hardware)
        gate = objective.gate(objective.agreements(*seen), seen[0], rows)
        parts = alone(*seen, images=rows).parts
        sums[:3] += torch.tensor([rows, rows * parts["agree"].item(), rows * parts["soft"].item()], dtype=torch.float64)
        for i, pair in enumerate(objective.maps):
            each = objective.distances(seen[0][pair.student].float(), seen[1][pair.teacher].float(), len(gate)).double()
            sums[3 + i] += float((gate * each).sum()) if each.numel() > 1 else float(each.mean() * gate.sum())
            sums[3 + maps + i] += float(gate.sum())
    progress.finish()
    count, agree, soft, *found = hardware.add(sums.to(hardware.device)).tolist()
    if not count:
        raise _empty()
    distances = tuple(a / max(1.0, b) for a, b in zip(found[:maps], found[maps:], strict=True))
    return StudentComparison(int(count), agree / count, soft / count, distances)


@torch.no_grad()
def first_look(setup: Setup, source: Source, hardware: Hardware) -> tuple[Outputs, Outputs]:
    """What student and teacher make of some images, in full precision.

    Raises:
        UnsupportedDataError: none can be read.
    """
    for feed, _ in clean(source, BATCH):
        return _answers(setup, feed, hardware)
    raise _empty()


def class_readings(setup: Setup, seen: Outputs, taught: Outputs) -> dict[str, Reading]:
    """How the outputs with classes are read, by the student's name."""
    kinds = setup.kinds
    pairs = [pair for pair in setup.outputs if kinds[pair.student] in CLASSES]
    return {p.student: reading(seen[p.student], taught[p.teacher], kinds[p.student]) for p in pairs}


def _answers(setup: Setup, feed: dict[str, NDArray[Any]], hardware: Hardware) -> tuple[Outputs, Outputs]:
    """What student and teacher make of a batch."""
    own, other = (
        [fed(feed[name]).to(hardware.device) for name in network.inputs] for network in (setup.student, setup.teacher)
    )
    taught = setup.teacher(*other)
    return setup.views[False, False](own, setup.handed(taught, apart=False), None), taught


def _empty() -> UnsupportedDataError:
    return UnsupportedDataError("the training data is empty", hint="point --data at a folder with images")


def clean(source: Source, images: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
    """Batches of about `images` images, evenly spread, as the source prepares them without augmentation.

    Whole feeds, and all that has no random access, come in their own order.
    """
    if source.random_access:
        chosen = np.linspace(0, len(source) - 1, min(images, len(source))).astype(int).tolist()
        requests: Sequence[tuple[Sequence[int], None]] = [
            (chosen[start : start + BATCH], None) for start in range(0, len(chosen), BATCH)
        ]
        for batch in stream(source, requests):
            if batch.size:
                yield batch.feed, batch.size
        return
    seen = 0
    for batch in source.batches(BATCH):
        cut = batch.counting(batch.feed) if source.whole is None else batch.feed
        yield cut, batch.size
        seen += batch.size
        if seen >= images:
            return
