"""`preprocessor_config.json`, as Hugging Face's image processors write it, as data options.

    there   x = (f pixel - offset - image_mean) / image_std      f = rescale_factor; 1 where do_rescale is false
    here    x = (pixel / 255 - mean) / std
            mean = (image_mean + offset) / 255 f, std = image_std / 255 f

    size as a number, do_center_crop               the shorter side, then the crop (CLIP of older versions)
    size as a number                               the whole image, stretched (ViT of older versions)
    {shortest_edge}, do_center_crop                the shorter side, then the crop (CLIP, BiT, MobileNet, DINOv2)
    {shortest_edge} with crop_pct                  a crop of crop_pct of the resize; stretched from 384 px on (ConvNeXt)
    {height, width}                                stretched (ViT, SigLIP, SegFormer, RT-DETR)
    {height, width}, do_center_crop                stretched, then the crop (DeiT, BEiT): said, see below
    {shortest_edge, longest_edge}, do_pad          the whole image, padded (DETR, YOLOS): said, see below

Source: transformers 4.x, `models/*/image_processing_*.py`. Limits: what has no counterpart here is said in a sentence:
images that are kept whole and padded, stretched before a crop, or not resized, and Pillow's filters box and hamming.
Defaults that a processor does not write are not known here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from gpusq_onnx.parsing import Expected

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_TAKEN = ("nearest", "lanczos", "bilinear", "bicubic")
_STRETCHED_FROM = 384  # px: ConvNeXt's rule
_LEVIT = 256 / 224  # LeViT's resize, by its size
_INSTEAD = "here it is cropped, or with --fit stretch resized to the input; nothing of its size is taken"
_SIDES = ("shortest_edge", "longest_edge", "height", "width", "max_height", "max_width")


def options_of(document: Any) -> tuple[dict[str, Any], list[str]]:
    """The data options that a file amounts to, and a sentence on each part of it that has no counterpart here.

    Raises:
        ValueError: a key holds something else than image processors write.
    """
    said = checked(document)
    notes: list[str] = []
    return {**_values(said, notes), **_filter(said, notes), **_geometry(said, notes)}, notes


def checked(document: Any) -> dict[str, Any]:
    """The keys that are looked at, without those that are null. Raises ValueError: see `options_of`."""
    if not isinstance(document, dict):
        raise ValueError(f"expected an object of keys and values, found {_shown(document)}")
    said = {key: document[key] for key in _SCHEMA if document.get(key) is not None}
    for key, value in said.items():
        if not _SCHEMA[key].fits(value):
            raise ValueError(f'"{key}": expected {_SCHEMA[key].words}, found {_shown(value)}')
    normalised = said.get("do_normalize", True)
    for key, other in (("image_mean", "image_std"), ("image_std", "image_mean")):
        if normalised and other in said and key not in said:
            raise ValueError(f'"{key}": expected {_SCHEMA[key].words}, as "{other}" is there, found nothing')
    return said


def _values(said: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """mean and std, in units of a pixel's 255."""
    full = 255 * said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 255.0
    full = 1.0 if math.isclose(full, 1.0, rel_tol=1e-6) else full
    moved = said.get("do_rescale", True) and (said.get("offset") or said.get("rescale_offset"))
    mean, std = said.get("image_mean"), said.get("image_std")
    if not said.get("do_normalize", True):
        mean, std = 0, 1
    elif mean is None or std is None:
        if full != 1 or moved:
            notes.append("says how pixels are rescaled and names no image_mean: mean and std are not taken")
        return {}
    means, stds = ([*value] if isinstance(value, list) else [value] for value in (mean, std))
    return {"mean": [(m + bool(moved)) / full for m in means], "std": [s / full for s in stds]}


def _filter(said: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if "resample" not in said:
        return {}
    name = _FILTERS[said["resample"]]
    if name not in _TAKEN:
        notes.append(
            f"resizes with the filter {name} (resample {said['resample']}), which is not there: bicubic is used"
        )
        return {}
    return {"interpolation": name}


def _geometry(said: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    size, cropped = _sides(said.get("size")), said.get("do_center_crop", False)
    if whole := _whole(said, size):
        notes.append(f"keeps the whole image ({whole}): {_INSTEAD}")
        return {}
    if not said.get("do_resize", True):
        notes.append(
            "does not resize (do_resize false): here images are resized and cropped, and nothing of its size is taken"
        )
        return {}
    crop = _square(_sides(said.get("crop_size"))) if cropped else None
    if "height" in size:
        return _stretched(size, crop, notes)
    shorter = size.get("shortest_edge", size.get(""))
    if shorter is None:
        return {}
    share = said.get("crop_pct")
    if share is not None and not cropped:  # ConvNeXt
        return {"fit": "stretch"} if shorter >= _STRETCHED_FROM else {"fit": "crop", "crop_ratio": share}
    if cropped:
        resize = int(shorter * _LEVIT) if said.get("image_processor_type", "").startswith("Levit") else shorter
        resize = resize if share is None else int(resize / share)
        return {"fit": "crop", "resize": resize} | ({} if crop is None else {"crop": crop})
    if "" in size:
        return {"fit": "stretch"}
    notes.append(f"resizes the shorter side to {shorter} and crops nothing: {_INSTEAD}")
    return {}


def _stretched(size: Mapping[str, int], crop: int | None, notes: list[str]) -> dict[str, Any]:
    side = _square(size)
    if crop is None or crop == side:
        return {"fit": "stretch"}
    if side is None or side < crop:
        notes.append(f"stretches to {size['height']}x{size['width']} and crops {crop}: nothing of its size is taken")
        return {}
    notes.append(f"stretches to {side}x{side} before the crop of {crop}: here the shorter side is resized to {side}")
    return {"fit": "crop", "resize": side, "crop": crop}


def _whole(said: Mapping[str, Any], size: Mapping[str, int]) -> str:
    """The keys by which images are scaled as a whole, or padded; "" where none does."""
    keys = ["do_pad"] if said.get("do_pad") else []
    return " and ".join(
        [*keys, *(key for key in ("longest_edge", "max_height") if key in size), *({"max_size"} & said.keys())]
    )


def _sides(value: Any) -> dict[str, int]:
    """A size by its keys; of a bare number, by ""."""
    if isinstance(value, list):
        return {"height": value[0], "width": value[1]}
    if isinstance(value, dict):
        return {key: value[key] for key in _SIDES if value.get(key) is not None}
    return {} if value is None else {"": value}


def _square(size: Mapping[str, int]) -> int | None:
    sides = {size[key] for key in ("", "height", "width", "shortest_edge") if key in size}
    return sides.pop() if len(sides) == 1 else None


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object with " + (", ".join(list(value)[:4]) or "no keys")
    if isinstance(value, list) and any(isinstance(part, (list, dict)) for part in value):
        return "a list of lists or objects"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9


def _pixels(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1_000_000


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _factor(value: Any) -> bool:
    return _number(value) and value > 0


def _share(value: Any) -> bool:
    return _number(value) and 0.1 <= value <= 1


def _means(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return len(values) in (1, 3) and all(map(_number, values))


def _stds(value: Any) -> bool:
    return _means(value) and all(part > 0 for part in (value if isinstance(value, list) else [value]))


def _filter_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in _FILTERS


def _size(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and all(map(_pixels, value))
    if not isinstance(value, dict):
        return _pixels(value)
    sides = _sides(value)
    pairs = (("height" in sides) == ("width" in sides)) and (("max_height" in sides) == ("max_width" in sides))
    return bool(sides) and pairs and all(map(_pixels, sides.values()))


_SWITCH = Expected("true or false", _flag)
_AREA = Expected('pixels: 224, {"shortest_edge": 224} or {"height": 224, "width": 224}', _size)
_SCHEMA: Mapping[str, Expected] = {
    "image_processor_type": Expected("a name", _text),
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"), _SWITCH),
    **dict.fromkeys(("offset", "rescale_offset"), _SWITCH),
    "rescale_factor": Expected("a number above 0", _factor),
    "image_mean": Expected("a number, or a list of 1 or 3", _means),
    "image_std": Expected("a number above 0, or a list of 1 or 3", _stds),
    "resample": Expected("0 to 5, one of Pillow's filters", _filter_number),
    "crop_pct": Expected("a number from 0.1 to 1", _share),
    **dict.fromkeys(("size", "crop_size"), _AREA),
    "max_size": Expected("a whole number of pixels, above 0", _pixels),
}
"""The keys that are looked at, with what they may hold."""
