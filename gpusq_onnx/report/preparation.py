"""How images became inputs, in one line, for the digests of `apply` and `check`."""

from collections.abc import Mapping
from typing import Any


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
    if data.get("guessed") and done["mean"] is not None:
        origin += "; mean and std are defaults, which nothing confirms"
    return f"preprocessing: {', '.join(parts)}{origin}"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))
