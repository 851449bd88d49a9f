"""Preprocessing that need not be given: remembered in the model's metadata, or written in a file beside the model.

    pkg.gpusq_onnx.preprocess   what `apply` calibrated with: how each image became an input, after defaults
    preprocessor_config.json    Hugging Face's image processors (in the parent, too, where the model lies in `onnx/`)
    config.json                 timm's, with a `pretrained_cfg`

Where several say something, the first of this list is taken, and what the caller gives wins over it, key by key; a
caller who gives something else than was remembered is warned: wrong preprocessing looks like lost accuracy.

Limits: Hugging Face's `do_pad` and sizes by `longest_edge`, with which DETR keeps the whole image, have no counterpart
here: of such a file only mean, std and interpolation are taken, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UsageError
from gpusq_onnx.parsing import parse_json, read_bytes
from gpusq_onnx.text import printable

KEY = "pkg.gpusq_onnx.preprocess"
FIELDS = ("fit", "resize", "crop", "interpolation", "mean", "std", "channels")
METADATA = "the model's metadata"
_ARRAYS = (".npy", ".npz", ".py")
_INSTEAD = "here it is cropped, or with --fit stretch resized to the input; nothing of its size is taken"
_PIL = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Settled:
    """Data options, complete.

    Attributes:
        options: the caller's, with what was found for the keys that they leave out.
        given: the keys that the caller gave, a preset's among them.
        taken_from: where something was found, and the keys that the caller gives otherwise; "" where nothing was.
        warnings: that the caller gives something else, or that a file is not understood.
        guessed: mean and std are defaults: neither the caller nor the model nor a file names any.
    """

    options: DataOptions
    given: frozenset[str]
    taken_from: str = ""
    warnings: tuple[str, ...] = ()
    guessed: bool = False

    def describe(self, source: Source) -> dict[str, Any]:
        """For reports, plain JSON values: what was asked for, where the rest came from, what `source` made of it."""
        said = {"options": self.options.echo(), "given": sorted(self.given)}
        about = {**said, "taken_from": self.taken_from, "guessed": self.guessed}
        return {**about, **source.describe(), "sha256": source.digest()}


def record(preprocess: Mapping[str, Any]) -> str:
    """The metadata's text for what `Preprocess.describe` says."""
    return json.dumps({key: preprocess[key] for key in FIELDS}, sort_keys=True)


def settle(options: DataOptions, metadata: Sequence[Mapping[str, str]], folder: Path | None) -> Settled:
    """Complete the options of images; those of arrays, which go in as they are, stay.

    Args:
        metadata: the models' own, of which the first that has something counts.
        folder: where the model lies; None: nowhere.
    """
    keys = frozenset(options.model_fields_set)
    if options.path is not None and (options.path.suffix in _ARRAYS or ".py:" in str(options.path)):
        return Settled(options, keys)
    found, where, problems = _found(metadata, folder)
    guessed = not {"mean", "std"} & options.model_fields_set
    if not found:
        return Settled(options, keys, "", problems, guessed=guessed)
    given = {key: getattr(options, key) for key in options.model_fields_set}
    if given.get("fit") == "stretch":
        found.pop("resize", None)
    if "resize" in given or "crop_ratio" in given:
        found.pop("fit", None)
        found.pop("resize", None)
    differing = [key for key, value in found.items() if key in given and not _same(given[key], value)]
    other = [f"{key} {_said(given[key])} is given, {where} says {_said(found[key])}" for key in differing]
    missing = {key: value for key, value in found.items() if key not in given}
    try:
        complete = DataOptions.from_values({**missing, **given})
    except UsageError as error:
        problem = f"{where} does not go with the data options: {error.what}"
        return Settled(options, keys, "", (*problems, problem), guessed=guessed)
    wrong = (f"{'; '.join(other)}: the wrong preprocessing looks like lost accuracy",) if other else ()
    taken = any(key != "crop" and not _same(getattr(options, key), value) for key, value in missing.items())
    origin = where + (f", but for {', '.join(differing)}" if differing else "")
    said = {"mean", "std"} <= found.keys()
    return Settled(complete, keys, origin if taken else "", (*problems, *wrong), guessed and not said)


def _found(metadata: Sequence[Mapping[str, str]], folder: Path | None) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    problems = []
    for one in metadata:
        if text := one.get(KEY):
            try:
                return _valid(_of_record(parse_json(text))), METADATA, ()
            except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
                problems.append(f"{METADATA}, {KEY}, is not understood: {printable(str(error))}")
    parents = [] if folder is None else [folder, *([folder.parent] if folder.name == "onnx" else [])]
    for file in [parent / name for parent in parents for name in ("preprocessor_config.json", "config.json")]:
        if not file.is_file():
            continue
        try:
            document = parse_json(read_bytes(file, "the configuration beside the model").decode())
            values = _of_timm(document) if file.name == "config.json" else _of_hugging_face(document)
            if file.name != "config.json" and _whole(document):
                problems.append(f"{file.name} beside the model keeps the whole image ({_whole(document)}): {_INSTEAD}")
            if values:
                return _valid(values), f"{file.name} beside the model", tuple(problems)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
            problems.append(f"{file.name} beside the model is not understood: {printable(str(error))}")
    return {}, "", tuple(problems)


def _valid(values: dict[str, Any]) -> dict[str, Any]:
    """The values as `DataOptions` has them. Raises UsageError for what they cannot be."""
    options = DataOptions.from_values(values)
    return {key: getattr(options, key) for key in values}


def _of_record(document: Any) -> dict[str, Any]:
    values = {key: document[key] for key in FIELDS if document.get(key) is not None}
    if len(set(values.get("crop", ()))) != 1:
        values.pop("crop", None)
    else:
        values["crop"] = values["crop"][0]
    if values.get("channels") not in ("RGB", "BGR"):
        values.pop("channels", None)
    return values


def _of_timm(document: Any) -> dict[str, Any]:
    """timm's `pretrained_cfg`; nothing of another library's config.json."""
    found = document.get("pretrained_cfg")
    if not isinstance(found, dict):
        return {}
    values: dict[str, Any] = {key: found[key] for key in ("mean", "std", "interpolation") if key in found}
    if found.get("crop_mode") == "squash":
        return {**values, "fit": "stretch"}
    if "crop_pct" in found:
        values["crop_ratio"] = found["crop_pct"]
    return values


def _of_hugging_face(document: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if document.get("do_normalize", True) and "image_mean" in document:
        values |= {"mean": document["image_mean"], "std": document["image_std"]}
    elif not document.get("do_normalize", True):
        values |= {"mean": 0, "std": 1}
    if document.get("resample") in _PIL:
        values["interpolation"] = _PIL[document["resample"]]
    if _whole(document):
        return values
    size, crop = document.get("size"), document.get("crop_size")
    if document.get("do_center_crop") and isinstance(crop, dict):
        crop = crop["height"] if crop["height"] == crop["width"] else None
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size
    if document.get("do_center_crop") and shorter is not None:
        values |= {"resize": shorter, "fit": "crop"} | ({"crop": crop} if crop else {})
    elif isinstance(size, dict) and "height" in size:
        values["fit"] = "stretch"
    return values


def _whole(document: Any) -> str:
    """The keys by which images are scaled as a whole and padded; "" where none does."""
    size = document.get("size")
    longest = isinstance(size, dict) and "longest_edge" in size
    return " and ".join([*(["do_pad"] if document.get("do_pad") else []), *(["longest_edge"] if longest else [])])


def _same(given: Any, found: Any) -> bool:
    if isinstance(given, tuple):
        return [*given * 3][:3] == [*found * 3][:3]
    return bool(given == found)


def _said(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)
