"""Rows of the table: operators that move elements: shapes, slices, gathers, scatters.

Source: the ONNX operator documentation, opsets 13 to 25 (older models are raised on load). Targets of Reshape, Expand
and Slice must be known: numbers, or sizes computed from shapes.
"""

from __future__ import annotations

import math
import operator

import numpy as np
import torch

from gpusq_onnx.torchgraph import functions
from gpusq_onnx.torchgraph.builder import Size, Unsupported, Value
from gpusq_onnx.torchgraph.call import Call, Emitted, OperatorRow, tensor_of


def _identity(c: Call) -> Value:
    return c.x(0)


def _dropout(c: Call) -> Emitted:
    x = c.x(0)
    return x if len(c.node.outputs) == 1 else (x, c(torch.ones_like, x, dtype=torch.bool))


def _shape(c: Call) -> Value:
    x = c.x(0)
    start, stop, _ = slice(c.attr("start"), c.attr("end")).indices(x.ndim)
    sizes = tuple(functions.shape_of(world, start, stop) for world in x.worlds)
    return Value(sizes, True, recipe=(functions.shape_of, (x, start, stop), {}, None))


def _size(c: Call) -> Value:
    sizes = tuple(functions.size_of(world) for world in c.x(0).worlds)
    return Value(sizes, True, recipe=(functions.size_of, (c.x(0),), {}, None))


def _reshape(c: Call) -> Value:
    x, shapes = c.x(0), []
    for world, target in zip(x.worlds, c.each(1), strict=True):
        kept = c.attr("allowzero", 0)
        shape = [world.shape[i] if n == 0 and not kept else n for i, n in enumerate(target)]
        if -1 in shape:
            shape[shape.index(-1)] = world.numel() // max(1, -math.prod(shape))
        shapes.append(shape)
    return c.reshaped(x, shapes)


def _flatten(c: Call) -> Value:
    axis = int(c.attr("axis", 1))
    axis += c.x(0).ndim if axis < 0 else 0
    return c.reshaped(c.x(0), [(math.prod(w.shape[:axis]), math.prod(w.shape[axis:])) for w in c.x(0).worlds])


def _squeeze(c: Call) -> Value:
    x = c.x(0)
    axes = [a % x.ndim for a in c.ints(1)] if c.has(1) else [a for a, n in enumerate(x.worlds[-1].shape) if n == 1]
    for axis in sorted(axes, reverse=True):
        x = c(torch.squeeze, x, axis)
    return x


def _unsqueeze(c: Call) -> Value:
    x, rank = c.x(0), c.x(0).ndim + len(c.ints(1))
    for axis in sorted(a % rank for a in c.ints(1)):
        x = c(torch.unsqueeze, x, axis)
    return x


def _transpose(c: Call) -> Value:
    order = tuple(c.attr("perm") or range(c.x(0).ndim)[::-1])
    result: Value = c.x(0) if order == tuple(range(c.x(0).ndim)) else c(torch.permute, c.x(0), order)
    return result


def _expand(c: Call) -> Value:
    x = c.x(0)
    shapes = [np.broadcast_shapes(tuple(w.shape), tuple(t)) for w, t in zip(x.worlds, c.each(1), strict=True)]
    if all(tuple(w.shape) == shape for w, shape in zip(x.worlds, shapes, strict=True)):
        return x
    result: Value = c(torch.broadcast_to, x, [c.builder.fit(sizes) for sizes in zip(*shapes, strict=True)])
    return result


def _concat(c: Call) -> Value:
    values = [value for value in c.inputs if value is not None]
    axis = c.axis(0)
    full = [value for value in values if value.worlds[0].shape[axis]] or values[:1]
    result: Value = full[0] if len(full) == 1 else c(torch.cat, full, axis)
    return result


def _split(c: Call) -> Emitted:
    axis = c.axis(0)
    (length,) = {world.shape[axis] for world in c.x(0).worlds}
    if c.has(1):
        sizes = c.ints(1)
    else:
        count = int(c.attr("num_outputs") or len(c.node.outputs))
        size = -(-length // count)
        sizes = [min(size, length - i * size) for i in range(count)]
    parts: Emitted = c(torch.split, c.x(0), sizes, axis)
    return parts


def _slice(c: Call) -> Value:
    x = c.x(0)
    starts, stops = c.each(1), c.each(2)
    axes = [a % x.ndim for a in c.ints(3)] if c.has(3) else list(range(len(starts[0])))
    steps = c.ints(4) if c.has(4) else [1] * len(axes)
    for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        lengths = [world.shape[axis] for world in x.worlds]
        spans = [slice(b[i], e[i], step).indices(n) for b, e, n in zip(starts, stops, lengths, strict=True)]
        if step < 0:
            if any(range(*span) != range(n)[::-1] for span, n in zip(spans, lengths, strict=True)):
                raise Unsupported("a Slice with a negative step that does not reverse a whole axis")
            x = c(torch.flip, x, (axis,))
        elif any(span != (0, n, 1) for span, n in zip(spans, lengths, strict=True)):
            start, stop = (c.builder.fit([span[k] for span in spans]) for k in (0, 1))
            whole = all(span[1] == n for span, n in zip(spans, lengths, strict=True))
            cut = slice(start or None, None if whole else stop, None if step == 1 else step)
            x = c(operator.getitem, x, (slice(None),) * axis + (cut,))
    return x


def _gather(c: Call) -> Value:
    x, indices, axis = c.x(0), c.x(1), c.axis(0)
    if indices.uniform and indices.ndim == 0 and int(indices.worlds[0]) >= 0:
        one: Value = c(torch.select, x, axis, int(indices.worlds[0]))
        return one
    if indices.uniform and indices.ndim == 0 and not _varies(x, axis):
        last: Value = c(torch.select, x, axis, int(indices.worlds[0]) % x.worlds[0].shape[axis])
        return last
    rows: Value = c(functions.take, x, axis, indices)
    return rows


def _gather_elements(c: Call) -> Value:
    result: Value = c(functions.take_elements, c.x(0), c.axis(0), c.x(1))
    return result


def _gather_nd(c: Call) -> Value:
    result: Value = c(functions.take_points, c.x(0), c.x(1), int(c.attr("batch_dims", 0)))
    return result


def _scatter_nd(c: Call) -> Value:
    reduction = _reduction(c, "none", "add")
    result: Value = c(functions.put_points, c.x(0), c.x(1), c.x(2), reduction == "add")
    return result


def _scatter_elements(c: Call) -> Value:
    reduction = _reduction(c, "none", "add", "mul", "max", "min")
    result: Value = c(functions.spread, c.x(0), c.axis(0), c.x(1), c.x(2), reduction)
    return result


def _reduction(c: Call, *known: str) -> str:
    name = c.text("reduction", "none")
    if name not in known:
        raise Unsupported(f"the reduction {name!r} is not supported")
    return name


def _tile(c: Call) -> Value:
    repeats: list[Size] = c.sizes(1)
    result: Value = c.x(0) if repeats == [1] * len(repeats) else c(torch.tile, c.x(0), tuple(repeats))
    return result


def _filled(c: Call) -> Value:
    stored = c.attr("value")
    value = tensor_of(stored.values) if stored is not None else torch.zeros(1)
    result: Value = c(torch.full, tuple(c.sizes(0)), value.item(), dtype=value.dtype)
    return result


def _range(c: Call) -> Value:
    if not all(c.x(i).known for i in range(3)):
        raise Unsupported("a Range whose ends depend on the data")
    result: Value = c(functions.count_up, c.x(0), c.x(1), c.x(2))
    return result


def _nonzero(c: Call) -> Value:
    if not c.x(0).known:
        raise Unsupported("how many elements are not zero depends on the data")
    result: Value = c(functions.places_of_nonzero, c.x(0))
    return result


def _one_hot(c: Call) -> Value:
    off, on = (tensor for tensor in c.x(2).worlds[0].tolist())
    (depth,) = c.ints(1)
    axis = int(c.attr("axis", -1))
    result: Value = c(functions.one_hot, c.x(0), depth, off, on, axis, c.x(2).dtype)
    return result


def _triangle(c: Call) -> Value:
    function = torch.triu if c.attr("upper", 1) else torch.tril
    result: Value = c(function, c.x(0), int(c.number(1)) if c.has(1) else 0)
    return result


def _depth_to_space(c: Call) -> Value:
    mode = c.attr("mode", "DCR")
    result: Value = c(functions.depth_to_space, c.x(0), int(c.attr("blocksize")), mode in ("CRD", b"CRD"))
    return result


def _space_to_depth(c: Call) -> Value:
    result: Value = c(functions.space_to_depth, c.x(0), int(c.attr("blocksize")))
    return result


def _constant(c: Call) -> Value:
    stored = c.attr("value")
    if stored is None:
        raise Unsupported("a Constant that holds no plain tensor")
    return c.builder.constant(tensor_of(stored.values))


def _varies(value: Value, axis: int) -> bool:
    return len({world.shape[axis] for world in value.worlds}) > 1


ROWS = (
    OperatorRow("Identity", 1, _identity),
    OperatorRow("Dropout", 12, _dropout),
    OperatorRow("Constant", 9, _constant),
    OperatorRow("Shape", 13, _shape),
    OperatorRow("Size", 1, _size),
    OperatorRow("Reshape", 5, _reshape),
    OperatorRow("Flatten", 9, _flatten),
    OperatorRow("Squeeze", 13, _squeeze),
    OperatorRow("Unsqueeze", 13, _unsqueeze),
    OperatorRow("Transpose", 1, _transpose),
    OperatorRow("Expand", 8, _expand),
    OperatorRow("Concat", 4, _concat),
    OperatorRow("Split", 13, _split),
    OperatorRow("Slice", 10, _slice),
    OperatorRow("Gather", 1, _gather),
    OperatorRow("GatherElements", 11, _gather_elements),
    OperatorRow("GatherND", 12, _gather_nd),
    OperatorRow("ScatterND", 11, _scatter_nd),
    OperatorRow("ScatterElements", 11, _scatter_elements),
    OperatorRow("Tile", 6, _tile),
    OperatorRow("ConstantOfShape", 9, _filled),
    OperatorRow("Range", 11, _range),
    OperatorRow("NonZero", 9, _nonzero),
    OperatorRow("OneHot", 9, _one_hot),
    OperatorRow("Trilu", 14, _triangle),
    OperatorRow("DepthToSpace", 11, _depth_to_space),
    OperatorRow("SpaceToDepth", 1, _space_to_depth),
)
