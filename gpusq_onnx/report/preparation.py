"""How images became inputs: in one line for the verbs' screens and digests, and as the options that say so."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.presets import PRESETS
from gpusq_onnx.text import numbers

_NAMES = {"path": "data", "preset": "data-preset"}
_NOUNS = {
    "parquet": "a Parquet file",
    "script": "a script",
    "webdataset": "a WebDataset",
}  # images, arrays: as they are
_TRUTHS = frozenset({"annotations", "masks", "reduce_zero_label"})  # options of the verbs that score


def counted(samples: int, data: Mapping[str, Any]) -> str:
    """So many samples and what they are, "8 samples of synthetic images"; `data`: as `line`."""
    kind = data["kind"]
    if kind == "synthetic":
        return f"{samples} samples of synthetic {'images' if data.get('preprocess') else 'tensors'}"
    return f"{samples} samples of {_NOUNS.get(kind, kind)}"


def line(data: Mapping[str, Any]) -> str:
    """What was done to each image, and where that came from; "" of data that goes in as it is.

    Args:
        data: `Outcome.data`, or the `data` of a check.
    """
    done = data.get("preprocess")
    if not done:
        return ""
    crop = "x".join(map(str, dict.fromkeys(done["crop"])))
    size = f"stretched to {crop}" if done["fit"] == "stretch" else f"resize {done['resize']}, crop {crop}"
    values = ", ".join(f"{key} {numbers(done[key], ' ')}" for key in ("mean", "std") if done[key] is not None)
    parts = [size, done["interpolation"], values or "pixels 0 to 255", done["channels"]]
    origin = f"; taken from {data['taken_from']}" if data.get("taken_from") else ""
    if data.get("guessed") and data["kind"] != "synthetic" and done["mean"] is not None:
        origin += "; mean and std are defaults, which nothing confirms"
    return f"preprocessing: {', '.join(parts)}{origin}"


def data_words(
    options: Mapping[str, Any], given: Collection[str] | None = None, *, scores: bool = False
) -> Iterator[str]:
    """Of `DataOptions.echo`: the options that were given, as options of a verb.

    Args:
        given: their keys; None: those that are not as they are by default.
        scores: of a verb that scores: with what images show, beside their classes.
    """
    preset = options.get("preset")
    default = DataOptions.from_values({} if preset is None else {"preset": preset}).echo()
    meant = PRESETS[preset].values if preset else {}
    for key, value in options.items():
        same = value == default.get(key)
        if value is None or value is False or (same and (given is None or key in meant)):
            continue
        if (given is not None and key not in given) or (key in _TRUTHS and not scores):
            continue
        yield f"--{_NAMES.get(key, key.replace('_', '-'))}"
        if isinstance(value, list):
            yield ",".join(map(number, value))
        elif value is not True:
            yield number(value) if isinstance(value, float) else str(value)


def given_words(data: Mapping[str, Any] | None, seed: int = 0, *, scores: bool = False) -> Iterator[str]:
    """What a report says of its data, as options; where there was none, the seed alone. `scores`: as `data_words`."""
    if data is not None:
        yield from data_words(data.get("options") or {}, data.get("given"), scores=scores)
    elif seed:
        yield from ("--seed", str(seed))


def number(value: float) -> str:
    """As short as it is exact."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
