"""What the learning passes found, in words: how the losses went, what weighed what, what moved, what held."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from gpusq_onnx.pipeline.learned import AgreementChange, Learned, MaskChecks
from gpusq_onnx.report.sheet import Grid, Item, Line, Part

ROWS = 8  # of the curves' table
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # of a curve as text
MAPS = 4  # feature maps with a column of their own
ASIDE = frozenset(("lr", "norm", "images_per_second"))  # for the report and the logs, not for the digest


def learning(found: Learned) -> Iterator[Part]:
    """The parts of a step's sheet; none where nothing was learned."""
    if found.curve:
        yield from _curve(found.curve)
    if found.factors:
        rows = [[name, _cell((found.distances or {}).get(name)), _cell(w)] for name, w in found.factors.items()]
        yield Grid(["critical feature map", "D_i", "w_i"], rows)
    if found.movement:
        yield Item(_scales(found.movement))
    if found.masks:
        yield Item(_masks(found.masks))
    if found.agreement:
        yield Item(_agreement(found.agreement))


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


def _curve(curve: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    rows = [_merged(row) for row in curve]
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ASIDE]
    losses = [float(row["loss"]) for row in rows if "loss" in row]
    if losses:
        yield Line(f"loss {sparkline(thinned(losses, WIDTH))} {losses[0]:.4g} -> {losses[-1]:.4g}")
    yield Grid(columns, [[_cell(row.get(key)) for key in columns] for row in thinned(rows, ROWS)])


def _merged(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its losses of more than `MAPS` feature maps as their mean."""
    features = [key for key in row if key.startswith("feature.")]
    if len(features) <= MAPS:
        return dict(row)
    rest = {key: value for key, value in row.items() if key not in features}
    return {**rest, f"mean of {len(features)} features": sum(row[key] for key in features) / len(features)}


def _scales(movement: Mapping[str, tuple[float, float]]) -> str:
    ratios = [after / before for before, after in movement.values() if before > 0]
    moved = [ratio for ratio in ratios if ratio != 1.0]
    line = f"scales: {len(moved)} of {len(ratios)} moved"
    if moved:
        line += f", by a factor of {min(moved):.3g} to {max(moved):.3g}, median {median(moved):.3g}"
    return line


def _masks(masks: MaskChecks) -> str:
    return f"masks: {masks.weights} weights follow their pattern; looked at {masks.checks} times, never broken"


def _agreement(found: AgreementChange) -> str:
    what = f"agreement with the teacher on {found.images} images"
    return f"{what}: {found.before:.1%} -> {found.after:.1%}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
