"""Preprocessing that need not be given: remembered in the model's metadata, or written in a file beside the model.

    pkg.gpusq_onnx.preprocess   what `apply` calibrated with: how each image became an input, after defaults
    preprocessor_config.json    Hugging Face's image processors (in the parent, too, where the model lies in `onnx/`)
    config.json                 timm's, with a `pretrained_cfg`

Where several say something, the first of this list is taken, and what the caller gives wins over it, key by key; a
caller who gives something else than was remembered is warned: wrong preprocessing looks like lost accuracy.

Limits: a file that is not understood is left as a whole, and that is said, as is what of a file has no counterpart here
(`hugging_face`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusq_onnx.data.hugging_face import options_of
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UsageError
from gpusq_onnx.marks import METADATA
from gpusq_onnx.parsing import parse_json, read_bytes
from gpusq_onnx.text import printable

KEY = f"{METADATA}preprocess"
FIELDS = ("fit", "resize", "crop", "interpolation", "mean", "std", "channels")
METADATA = "the model's metadata"
_ARRAYS = (".npy", ".npz", ".py")
_NEXT = "nothing of it is taken: give --mean, --std and the size, or --data-preset"


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
    problems: list[str] = []
    for one in metadata:
        if text := one.get(KEY):
            try:
                return _valid(_of_record(parse_json(text))), METADATA, ()
            except (ValueError, UsageError) as error:
                problems.append(_not_understood(f"{METADATA}, {KEY},", error))
    parents = [] if folder is None else [folder, *([folder.parent] if folder.name == "onnx" else [])]
    for file in [parent / name for parent in parents for name in ("preprocessor_config.json", "config.json")]:
        if not file.is_file():
            continue
        where = f"{file.name} beside the model"
        try:
            document = parse_json(read_bytes(file, "the configuration beside the model").decode())
            values, notes = (_of_timm(document), []) if file.name == "config.json" else options_of(document)
            valid = _valid(values)
        except (OSError, ValueError, UsageError) as error:
            problems.append(_not_understood(where, error))
            continue
        problems += [f"{where} {note}" for note in notes]
        if valid:
            return valid, where, tuple(problems)
    return {}, "", tuple(problems)


def _not_understood(where: str, error: Exception) -> str:
    reason = error.what if isinstance(error, UsageError) else str(error)
    return f"{where} is not understood: {printable(reason)}; {_NEXT}"


def _valid(values: dict[str, Any]) -> dict[str, Any]:
    """The values as `DataOptions` has them. Raises UsageError for what they cannot be."""
    options = DataOptions.from_values(values)
    return {key: getattr(options, key) for key in values}


def _of_record(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ValueError("expected an object of keys and values")
    values = {key: document[key] for key in FIELDS if document.get(key) is not None}
    crop = values.pop("crop", None)
    if isinstance(crop, list) and len(crop) == 2 and crop[0] == crop[1]:
        values["crop"] = crop[0]
    if values.get("channels") not in ("RGB", "BGR"):
        values.pop("channels", None)
    return values


def _of_timm(document: Any) -> dict[str, Any]:
    """timm's `pretrained_cfg`; nothing of another library's config.json."""
    found = document.get("pretrained_cfg") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        return {}
    values: dict[str, Any] = {key: found[key] for key in ("mean", "std", "interpolation") if key in found}
    if found.get("crop_mode") == "squash":
        return {**values, "fit": "stretch"}
    if "crop_pct" in found:
        values["crop_ratio"] = found["crop_pct"]
    return values


def _same(given: Any, found: Any) -> bool:
    if isinstance(given, tuple):
        return [*given * 3][:3] == [*found * 3][:3]
    return bool(given == found)


def _said(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)
