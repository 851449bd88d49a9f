"""How steeply a classifier's answer depends on inner tensors, image by image.

    slope = |d log p(y | x) / d row|        y drawn from the model's own p(y | x); a row: all channels at one place

Its square's mean is the Fisher information of the row: what an error there does to the KL divergence of the answer.

Source: Martens, "New insights and perspectives on the natural gradient method" (arXiv 1412.1193). Limits: outputs
[B, C], logits or probabilities. One image at a time (a fixed batch as it is, and a feed whose inputs have no batch in
common), each in one thread: the same numbers on any number of cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpusq_onnx.graph.model import Model
from gpusq_onnx.pipeline.parallel import in_order
from gpusq_onnx.tasks.kinds import normalised
from gpusq_onnx.torchgraph.call import fed
from gpusq_onnx.torchgraph.convert import convert

_TINY = 1e-12  # of a probability whose logarithm is taken


class Slopes:
    """Finds them with a copy of the model.

    Args:
        model: a classifier.
        answers: its outputs [B, C].
        places: names of inner tensors, and the axis of each that its channels lie along.
        seed: of the answers that are drawn.

    Raises:
        UnsupportedModelError: an operator that cannot be converted.
    """

    def __init__(self, model: Model, answers: Sequence[str], places: Mapping[str, int], seed: int) -> None:
        self._network = convert(model, outputs=list(answers), taps=list(places))
        self._answers, self._places = answers, places
        self._whole = len({tuple(spec.shape[:1]) for spec in model.inputs()}) > 1
        self._random = np.random.default_rng(seed)

    def of(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """The slopes of a batch, by place, in the order of its rows; zeros where the answer does not depend on it."""
        names = self._network.inputs
        if self._whole:
            some = [([fed(feed[name]) for name in names], self._chances(1))]
        else:
            rows, step = len(next(iter(feed.values()))), self._network.fixed or 1
            some = [
                ([fed(feed[name][i : i + step]) for name in names], self._chances(min(step, rows - i)))
                for i in range(0, rows, step)
            ]
        with _one_thread():
            parts = list(in_order(self._some, some))
        return {name: np.concatenate([part[name] for part in parts]) for name in self._places}

    def _chances(self, rows: int) -> list[Tensor]:
        """For each answer, a number in 0..1 for each row; one for all rows of a whole feed."""
        return [torch.from_numpy(self._random.random((rows, 1))) for _ in self._answers]

    def _some(self, given: tuple[list[Tensor], list[Tensor]]) -> dict[str, NDArray[np.float32]]:
        inputs, chances = given
        with torch.enable_grad():
            values: dict[str, Tensor] = dict(zip(self._network.outputs, self._network.body(*inputs), strict=True))
            answers = [_log_probabilities(values[name]) for name in self._answers]
            picked = (log_p.gather(1, _draw(log_p, at)) for log_p, at in zip(answers, chances, strict=True))
            drawn = sum((log_p.sum() for log_p in picked), torch.zeros(()))
            taps = [values[name] for name in self._places]
            slopes = torch.autograd.grad(drawn, taps, allow_unused=True)
        found = {}
        for (name, axis), value, slope in zip(self._places.items(), taps, slopes, strict=True):
            known = torch.zeros_like(value) if slope is None else slope
            found[name] = known.float().norm(dim=axis).reshape(-1).numpy()
        return found


def _draw(log_p: Tensor, at: Tensor) -> Tensor:
    """A class for each row [rows, 1], by its probability; at: where in 0..1."""
    below = log_p.detach().double().exp().cumsum(dim=1) < at
    return below.sum(dim=1, keepdim=True).clamp(max=log_p.shape[1] - 1)


def _log_probabilities(z: Tensor) -> Tensor:
    z = z.float()
    return z.clamp(min=_TINY).log() if normalised(z.detach().numpy()) else torch.log_softmax(z, dim=1)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
