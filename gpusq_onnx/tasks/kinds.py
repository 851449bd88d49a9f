"""What a model's float outputs are, recognised by their shapes: the table that distillation chooses losses by.

    [B, C], C > 1                     logits     one row of class logits per image; not beside boxes
    [B, Q, C] beside some [B, Q, 4]   queries    class logits per query or proposal (DETR family)
    [B, Q, 4]                         boxes      one box per query, in whatever coordinates the model has
    [B, Q, H, W] beside both          masks      one outline per query (DETR's segmentation, MaskFormer with boxes)
    [B, C, H, W], H and W the image's, or the only output
                                      pixels     class logits per pixel (segmentation)
    anything else                     raw        a feature map: matched by its values

Limits: a shape is all there is to see: [B, Q, C] may be normalised by softmax or by sigmoid (`per_class`), and boxes of
four classes would be taken for boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["logits", "queries", "boxes", "masks", "pixels", "raw"]
CLASSES: frozenset[Kind] = frozenset({"logits", "queries", "pixels"})  # those with classes to agree on

LEAST_SIDE = 8  # px, of an image
_CHANNELS = (1, 3, 4)
_ROUNDING = 1e-3  # of a sum of probabilities

Shape = Sequence[int | str | None]


def image_shape(inputs: Iterable[Shape]) -> Shape:
    """The shape of the image input, [B, C, H, W] or [B, H, W, C]; empty where no input is one.

    Height and width are free, or `LEAST_SIDE` and more; coordinates of points, [B, P, N, 2], are no image.

    >>> image_shape([(1, 1, 2, 2), (1, 3, 256, 256)]), image_shape([("B", "P", "N", 2)])
    ((1, 3, 256, 256), ())
    """
    return next((shape for shape in inputs if _is_image(shape)), ())


def _is_image(shape: Shape) -> bool:
    if len(shape) != 4:
        return False
    last = not isinstance(shape[3], int) or shape[3] in _CHANNELS
    return all(map(_is_side, shape[2:])) or (last and all(map(_is_side, shape[1:3])))


def _is_side(side: int | str | None) -> bool:
    return not isinstance(side, int) or side >= LEAST_SIDE


def output_kinds(outputs: Mapping[str, Shape], image: Shape = ()) -> dict[str, Kind]:
    """The kind of each output, by name.

    Args:
        outputs: shapes of the float outputs, the batch first.
        image: shape of the image input [B, C, H, W] or [B, H, W, C]; empty where the model has none.
    """
    return {name: _kind(shape, [s for n, s in outputs.items() if n != name], image) for name, shape in outputs.items()}


def _kind(shape: Shape, others: Sequence[Shape], image: Shape) -> Kind:
    if len(shape) == 3 and shape[-1] == 4 and others:
        return "boxes"
    detects = [o for o in others if len(o) == 3 and o[-1] == 4]
    if len(shape) == 3 and any(_same(o[1], shape[1]) for o in detects):
        return "queries"
    if len(shape) == 2 and shape[1] != 1 and not detects:
        return "logits"
    if len(shape) == 4 and any(_same(o[1], shape[1]) for o in detects):
        return "masks"
    if len(shape) == 4 and shape[1] != 1 and (not others or _fills(shape[2:], image)):
        return "pixels"
    return "raw"


def _same(one: int | str | None, other: int | str | None) -> bool:
    """Whether two sizes may be one: exporters give one dynamic size many names."""
    return one == other or not (isinstance(one, int) or isinstance(other, int))


def _fills(sides: Shape, image: Shape) -> bool:
    """Whether two sides are those of the image, in either layout."""
    return len(image) == 4 and tuple(sides) in (tuple(image[2:]), tuple(image[1:3]))


def normalised(x: NDArray[Any]) -> bool:
    """Whether rows along the last axis are probabilities already: none below 0, and sums of 1.

    >>> normalised(np.array([[0.25, 0.75]])), normalised(np.array([[0.5, 0.75]]))
    (True, False)
    """
    return bool((x >= 0).all()) and bool((np.abs(x.sum(axis=-1, dtype=np.float64) - 1) < _ROUNDING).all())


def per_class(logits: NDArray[Any]) -> bool:
    """Whether class logits [..., C] of a detector look like one sigmoid per class rather than one softmax.

    A softmax over queries has a class for "nothing", so each query's largest logit is well above the others and mostly
    positive; under sigmoids, nothing is said by all logits being negative, and most queries say nothing. Logarithms
    of a softmax are all negative, too, and add up to 1 as probabilities.
    """
    largest = logits.max(axis=-1)
    logarithms = bool((largest <= 0).all()) and normalised(np.exp(logits))
    return bool(np.median(largest) < 0) and not logarithms
