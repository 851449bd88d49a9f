"""Whether images are normalised as the model learned to see them, asked of the model itself, without labels.

The same images go in with the mean and std of each data preset; where the model is much surer with one of them, that is
said: wrong preprocessing looks like lost accuracy.

Limits: mean and std only; crops change what is seen, so that sureness says little about them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.presets import PRESETS
from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import at_most
from gpusq_onnx.errors import GpusqError
from gpusq_onnx.runtime.compare.outputs import Loaded
from gpusq_onnx.tasks.sureness import sureness
from gpusq_onnx.text import numbers

IMAGES = 32  # that are looked at, where that takes no more than
SECONDS = 10.0
FEWEST = 16  # images of which something can be said
_MARGIN = 0.05  # by which sureness, 0 to 1, must differ: by ImageNet's mean and std a ViT-Tiny loses 0.20, DEIMv2 0.06
_ERRORS = 2.5  # and in standard errors
_BATCH = 4
_PATIENCE = 2  # with the first runs, which are slower

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""mean and std of red, green and blue, of pixels 0 to 1."""


def doubts(opened: Callable[[], Loaded], source: Source) -> list[str]:
    """A sentence where another normalisation suits the model much better; else nothing.

    Nothing, too, where `source` is not of colour images, readable by index and `FEWEST` at least, where the outputs are
    nothing to be sure of, and where so many runs take more than `SECONDS`.

    Args:
        opened: gives the model, loaded; asked where there is something to find out.
    """
    done = source.describe().get("preprocess")
    usable = source.random_access and source.kind != "synthetic" and len(source) >= FEWEST
    if not usable or not done or len(done["mean"] or ()) != 3:
        return []
    now: Normalisation = (tuple(done["mean"]), tuple(done["std"]))
    candidates = list(dict.fromkeys([now, *(_normalisation(preset.values) for preset in PRESETS.values())]))
    try:
        found = _sureness(opened(), at_most(source, IMAGES), done, candidates)
    except GpusqError:
        return []  # what runs the model in earnest says why it does not run
    if len(found.get(now, ())) < FEWEST:
        return []
    best = max(found, key=lambda one: float(found[one].mean()))
    gain = found[best] - found[now]
    if not gain.mean() > max(_MARGIN, _ERRORS * gain.std(ddof=1) / len(gain) ** 0.5):
        return []
    sure, surer = found[now].mean(), found[best].mean()
    return [
        f"the preprocessing looks wrong: with {_options(now)} the model is {sure:.0%} sure of {len(gain)} images, and "
        f"{surer:.0%} with {_options(best)}; give what it was trained with"
    ]


def _sureness(
    model: Loaded, source: Source, done: Mapping[str, Any], candidates: Sequence[Normalisation]
) -> dict[Normalisation, NDArray[np.float64]]:
    """How sure the model is of each image, by normalisation; empty where its outputs do not say.

    Args:
        done: what `source` does to an image, as `Preprocess.describe` says it; `candidates[0]` is its normalisation.
    """
    shapes = [spec.shape for spec in model.inputs()]
    found: dict[Normalisation, list[NDArray[np.float64]]] = {candidate: [] for candidate in candidates}
    began, runs, enough = time.perf_counter(), 0, FEWEST * len(candidates)
    with model.opened() as infer:
        for batch in source.batches(_BATCH):
            pixels = batch.feed[done["input"]]
            for candidate, rows in found.items():
                fed = _moved(pixels.astype(np.float32), candidates[0], candidate, done).astype(pixels.dtype)
                sure = sureness(infer({**batch.feed, done["input"]: fed}), shapes)
                runs += batch.size
                late = runs < enough and time.perf_counter() - began > _PATIENCE * SECONDS * runs / enough
                if sure is None or late:
                    return {}
                rows.append(sure[: batch.size])
            if time.perf_counter() - began > SECONDS:
                break
    return {candidate: np.concatenate(rows) for candidate, rows in found.items() if rows}


def _moved(
    x: NDArray[np.float32], before: Normalisation, after: Normalisation, done: Mapping[str, Any]
) -> NDArray[np.float32]:
    """x, normalised as `before` says, as `after` says it."""
    if before == after:
        return x
    step = 1 if done["channels"] == "RGB" else -1
    shape = (3, 1, 1) if done["layout"] == "NCHW" else (3,)
    values = [np.array(v[::step], np.float32).reshape(shape) for v in (*before, *after)]
    moved: NDArray[np.float32] = (x * values[1] + values[0] - values[2]) / values[3]
    return moved


def _normalisation(values: Mapping[str, Any]) -> Normalisation:
    mean, std = (v if isinstance(v, tuple) else (float(v),) * 3 for v in (values["mean"], values["std"]))
    return mean, std


def _options(one: Normalisation) -> str:
    mean, std = (numbers(values, ",") for values in one)
    return f"--mean {mean} --std {std}"
