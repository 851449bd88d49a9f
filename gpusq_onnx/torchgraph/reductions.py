"""Rows of the table: reductions, running sums, padding and resizing.

Source: the ONNX operator documentation. Resize in the nearest modes is an index per axis, computed here exactly as ONNX
says; linear and cubic are torch's where both agree. Limits: no antialiasing, no cropping regions, cubic_coeff_a -0.75.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch.nn import functional

from gpusq_onnx.torchgraph import functions
from gpusq_onnx.torchgraph.builder import Unsupported, Value
from gpusq_onnx.torchgraph.call import Call, OperatorRow


def _reduce(function: Callable[..., Any]) -> Callable[[Call], Value]:
    def emit(c: Call) -> Value:
        x = c.x(0)
        listed = c.ints(1) if c.has(1) else c.attr("axes")
        if not listed and (c.attr("noop_with_empty_axes", 0) or x.ndim == 0):
            return x
        axes = tuple(int(a) % x.ndim for a in listed) if listed else tuple(range(x.ndim))
        result: Value = c(function, x, axes, bool(c.attr("keepdims", 1)))
        return result

    return emit


def _arg(function: Callable[..., Any]) -> Callable[[Call], Value]:
    def emit(c: Call) -> Value:
        if c.attr("select_last_index", 0):
            raise Unsupported("the last of equal extremes (select_last_index)")
        result: Value = c(function, c.x(0), c.axis(0), bool(c.attr("keepdims", 1)))
        return result

    return emit


def _cumsum(c: Call) -> Value:
    axis = int(c.number(1)) % c.x(0).ndim
    result: Value = c(functions.running_sum, c.x(0), axis, bool(c.attr("exclusive", 0)), bool(c.attr("reverse", 0)))
    return result


def _pad(c: Call) -> Value:
    x, pads = c.x(0), c.ints(1)
    axes = [a % x.ndim for a in c.ints(3)] if c.has(3) else list(range(x.ndim))
    sides = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    flat = [n for axis in reversed(range(x.ndim)) for n in sides.get(axis, (0, 0))]
    while flat[-2:] == [0, 0]:
        del flat[-2:]
    if not flat:
        return x
    named = c.text("mode", "constant")
    mode = {"edge": "replicate", "wrap": "circular"}.get(named, named)
    if mode == "constant":
        fill = c.number(2) if c.has(2) else 0
        padded: Value = c(functional.pad, x, flat, mode, fill)
    else:
        padded = c(functional.pad, x, flat, mode)
    return padded


def _resize(c: Call) -> Value:
    x = c.x(0)
    source = list(x.worlds[0].shape)
    axes = [int(a) % x.ndim for a in c.attr("axes") or range(x.ndim)]
    target, scales = list(source), [1.0] * x.ndim
    if c.has(3) and c.x(3).worlds[0].numel():
        if c.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported("Resize that keeps the aspect ratio")
        given = dict(zip(axes, zip(*c.each(3), strict=True), strict=True))
        for axis, sizes in given.items():
            if any(size != world.shape[axis] for size, world in zip(sizes, x.worlds, strict=True)):
                target[axis] = sizes[0]
                scales[axis] = target[axis] / source[axis]
    else:
        for axis, scale in zip(axes, c.x(2).worlds[0].tolist(), strict=True):
            target[axis], scales[axis] = math.floor(Fraction(scale) * source[axis]), scale
    resized = [a for a in range(x.ndim) if target[a] != source[a]]
    if any(len({world.shape[a] for world in x.worlds}) > 1 for a in resized):
        raise Unsupported("Resize of the batch")
    if not resized:
        return x
    mode, place = c.text("mode", "nearest"), c.text("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        for axis in resized:
            where = [_nearest(c, i, scales[axis], source[axis], target[axis], place) for i in range(target[axis])]
            x = c(torch.index_select, x, axis, c.builder.constant(torch.tensor(where)))
        return x
    if place == "pytorch_half_pixel":  # coordinate 0 where one value is left, not the middle
        for axis in [axis for axis in resized if target[axis] == 1]:
            x = c(torch.narrow, x, axis, 0, 1)
            resized.remove(axis)
            source[axis] = 1
    return _interpolated(c, x, resized, source, target, scales, mode, place) if resized else x


def _nearest(c: Call, index: int, scale: float, source: int, target: int, place: str) -> int:
    at = {
        "half_pixel": (index + 0.5) / scale - 0.5,
        "pytorch_half_pixel": (index + 0.5) / scale - 0.5 if target > 1 else 0.0,
        "asymmetric": index / scale,
        "align_corners": index * (source - 1) / (target - 1) if target > 1 else 0.0,
    }.get(place)
    if at is None:
        raise Unsupported(f"Resize with {place}")
    rounded = {
        "round_prefer_floor": math.ceil(at - 0.5),
        "round_prefer_ceil": math.floor(at + 0.5),
        "floor": math.floor(at),
        "ceil": math.ceil(at),
    }[c.text("nearest_mode", "round_prefer_floor")]
    return min(max(rounded, 0), source - 1)


def _interpolated(
    c: Call,
    x: Value,
    resized: list[int],
    source: list[int],
    target: list[int],
    scales: list[float],
    mode: str,
    place: str,
) -> Value:
    plain = not c.attr("antialias", 0) and not c.attr("exclude_outside", 0)
    plain &= mode == "linear" or (x.ndim == 4 and float(c.attr("cubic_coeff_a", -0.75)) == -0.75)
    exact = all(abs(scales[a] * source[a] - target[a]) < 1e-3 for a in resized)
    corners = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}.get(place)
    if not plain or not exact or corners is None or min(resized) < 2 or not 3 <= x.ndim <= 5:
        raise Unsupported(f"Resize of {source} to {target} with {mode}, {place} and its options")
    kind = "bicubic" if mode == "cubic" else {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    result: Value = c(functional.interpolate, x, tuple(target[2:]), None, kind, corners)
    return result


ROWS = (
    *(
        OperatorRow(f"Reduce{name}", 13, _reduce(function))
        for name, function in (
            ("Mean", torch.mean), ("Sum", torch.sum), ("Max", torch.amax), ("Min", torch.amin),
            ("Prod", functions.product_along), ("L1", functions.norm_l1), ("L2", functions.norm_l2),
            ("SumSquare", functions.squares), ("LogSumExp", functions.logsumexp_of),
        )
    ),
    OperatorRow("ArgMax", 13, _arg(torch.argmax)),
    OperatorRow("ArgMin", 13, _arg(torch.argmin)),
    OperatorRow("CumSum", 11, _cumsum),
    OperatorRow("Pad", 11, _pad),
    OperatorRow("Resize", 11, _resize),
)  # fmt: skip
