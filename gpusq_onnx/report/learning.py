"""What the learning passes found, as Markdown: how the losses went, what weighed what, what moved, what held.

Read from a step's findings, each key where the pass gives it:

    curve       rows {"step": int, "loss": float, ...}, in order: the training curves
    distances   {feature map: D_i}        factors   {feature map: w_i}
    movement    {scale: [before, after]}, of a weight the mean over its channels
    masks       {"weights": how many follow a pattern, "checks": how often that was looked at}
    agreement   {"images": int, "before": share, "after": share}, with the teacher's first choice
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from gpusq_onnx.report.markdown import table

ROWS = 8  # of the curves' table
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # of a curve as text
MAPS = 4  # feature maps with a column of their own
ASIDE = frozenset(("lr", "norm", "images_per_second"))  # for the report and the logs, not for the digest


def learning(findings: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the digest; none where nothing was learned."""
    for key, tell in _PARTS.items():
        if findings.get(key):
            yield ""
            yield from tell(findings)


def thinned(rows: Sequence[Any], count: int) -> list[Any]:
    """At most `count` rows, evenly spaced, the first and the last among them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (count - 1))] for index in range(count)]


def sparkline(values: Sequence[float]) -> str:
    """The values as bars of eight heights; a value that is not finite leaves a gap."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    unit = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / unit)] if math.isfinite(value) else " " for value in values)


def _curve(findings: Mapping[str, Any]) -> Iterator[str]:
    rows = [_merged(row) for row in findings["curve"]]
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ASIDE]
    losses = [float(row["loss"]) for row in rows if "loss" in row]
    if losses:
        yield f"loss {sparkline(thinned(losses, WIDTH))} {losses[0]:.4g} -> {losses[-1]:.4g}"
        yield ""
    yield from table(columns, [[_cell(row.get(key)) for key in columns] for row in thinned(rows, ROWS)])


def _merged(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its losses of more than `MAPS` feature maps as their mean."""
    features = [key for key in row if key.startswith("feature.")]
    if len(features) <= MAPS:
        return dict(row)
    rest = {key: value for key, value in row.items() if key not in features}
    return {**rest, f"mean of {len(features)} features": sum(row[key] for key in features) / len(features)}


def _factors(findings: Mapping[str, Any]) -> Iterator[str]:
    distances = findings.get("distances") or {}
    rows = [[name, _cell(distances.get(name)), _cell(w)] for name, w in findings["factors"].items()]
    yield from table(["critical feature map", "D_i", "w_i"], rows)


def _scales(findings: Mapping[str, Any]) -> Iterator[str]:
    ratios = [after / before for before, after in findings["movement"].values() if before > 0]
    moved = [ratio for ratio in ratios if ratio != 1.0]
    line = f"scales: {len(moved)} of {len(ratios)} moved"
    if moved:
        line += f", by a factor of {min(moved):.3g} to {max(moved):.3g}, median {median(moved):.3g}"
    yield line


def _masks(findings: Mapping[str, Any]) -> Iterator[str]:
    masks = findings["masks"]
    yield f"masks: {masks['weights']} weights follow their pattern; looked at {masks['checks']} times, never broken"


def _agreement(findings: Mapping[str, Any]) -> Iterator[str]:
    found = findings["agreement"]
    what = f"agreement with the teacher on {found['images']} images"
    yield f"{what}: {found['before']:.1%} -> {found['after']:.1%}"


_PARTS = {"curve": _curve, "factors": _factors, "movement": _scales, "masks": _masks, "agreement": _agreement}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
