"""How images became inputs: in one line for the verbs' screens and digests, and as the options that say so."""

from collections.abc import Iterator, Mapping
from typing import Any

from gpusq_onnx.data.options import DataOptions

_NAMES = {"path": "data", "preset": "data-preset"}
_APART = ("crop_ratio", "seed")  # a key of files only, and an option of its own


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
    values = ", ".join(f"{key} {_numbers(done[key])}" for key in ("mean", "std") if done[key] is not None)
    parts = [size, done["interpolation"], values or "pixels 0 to 255", done["channels"]]
    origin = f"; taken from {data['taken_from']}" if data.get("taken_from") else ""
    if data.get("guessed") and data["kind"] != "synthetic" and done["mean"] is not None:
        origin += "; mean and std are defaults, which nothing confirms"
    return f"preprocessing: {', '.join(parts)}{origin}"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def given_words(data: Mapping[str, Any]) -> Iterator[str]:
    """Of a report's `data` (`data.remembered.Settled.describe`): what the caller gave."""
    options = data.get("options") or {}
    return data_words(options, options.get("seed", 0))


def data_words(options: Mapping[str, Any], seed: int) -> Iterator[str]:
    """Of `DataOptions.echo`: the options, and the seed, that are not as they are by default."""
    default = DataOptions.from_values({}).echo()
    for key, value in options.items():
        if value is None or value == default.get(key) or key in _APART:
            continue
        yield f"--{_NAMES.get(key, key.replace('_', '-'))}"
        if isinstance(value, list):
            yield ",".join(f"{number:g}" for number in (value[:1] if len(set(value)) == 1 else value))
        elif value is not True:
            yield str(value)
    if seed:
        yield from ("--seed", str(seed))
