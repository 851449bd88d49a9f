"""Carry out a quantisation plan: watch the activations, move outliers, correct biases, write the pairs.

    1. all images, in floating point: each planned activation's range, with outlier channels divided out, and 4-bit
       ones centred
    2. a few images again, at the scales now known: the mean error that rounding leaves
    3. the edits: factors into LayerNorms, weights and Muls; offsets into Adds; shifts into biases; Q/DQ pairs with
       their scales
    4. where rounding=gptq: all images again, through the quantised model, weight by weight (`calibration.rounding`)

Nothing here decides what is quantised: the plan's rows do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.calibration.activations import Calibration
from gpusq_onnx.calibration.ranges import ContextError, MakeObserver, MeanError, Watch
from gpusq_onnx.calibration.rounding import WeightGrid, round_weights
from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import LINEAR
from gpusq_onnx.graph.qdq.codes import codes_of, store_on_grid, weight_scales_of
from gpusq_onnx.graph.qdq.pairs import QdqWriter, store_codes
from gpusq_onnx.graph.qdq.rescale import offset_input, own_bias, rescale_input, rescale_output, shift_bias
from gpusq_onnx.graph.sites import Site, find_sites
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.base import Context, PlanRow
from gpusq_onnx.pipeline.details import OperandPair, QdqPair, TensorPair, WeightPair, readers_of, rows_with
from gpusq_onnx.pipeline.parallel import in_order, run_all
from gpusq_onnx.quant.dynamic import scales_for
from gpusq_onnx.quant.equalise import Float32
from gpusq_onnx.quant.formats import Format, clamp_scale, fake_quantize
from gpusq_onnx.quant.scales import Scales

ERROR_IMAGES = 4  # about 800 tokens of a ViT: the mean of a rounding error needs no more
ERROR_QUERIES = 100  # of each image and head, at most: enough for the error of their attention
SOFTMAX_CLIPS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)  # of the largest probability that keeps its value

Clip = Literal["mse", "absmax"]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class QuantiseSettings:
    """How scales are found.

    Attributes:
        observer: makes an observer for one activation, given its channels' importance.
        bias_correction: whether biases absorb the mean rounding error.
        clip: how weight scales are chosen.
        codes: store weights as codes instead of floats before Q/DQ.
    """

    observer: MakeObserver
    bias_correction: bool
    clip: Clip
    codes: bool


def quantise(
    model: Model, structure: Structure, plan: Sequence[PlanRow], settings: QuantiseSettings, context: Context
) -> None:
    """Insert the planned pairs into `model`; scales and equalised tensors go into the context's findings."""
    sites = {site.name: site for site in structure.sites}
    rows = _Rows.of(plan)
    weights = [
        _Weight(sites[row.tensor], pair.numbers, pair.block, pair.rounding == "gptq")
        for row, pair in rows_with(plan, WeightPair)
    ]
    softmaxes = [row.tensor for row, pair in rows.operands if pair.operand == "softmax"]
    watches = {row.tensor: _watch(pair, sites, settings) for row, pair in rows.all if row.tensor not in softmaxes}
    maps = {row.tensor for row, _ in rows.inputs if _reads_maps(row)}
    operands = _contexts(structure, softmaxes)
    tensors = [*watches, *softmaxes]
    if not tensors:  # weights alone
        nothing = _Shifts(structure, rows, watches, {})
        _edit(model, structure, rows, weights, watches, {}, nothing, settings, context)
        _finish(model, weights, settings, context)
        return
    assert context.source is not None
    with Calibration(model, tensors, structure.shapes, context.source, context.progress, operands) as calibration:

        def update(found: Arrays, images: int) -> None:
            names = [name for name in watches if name in found]
            run_all(lambda name: watches[name].update(_channels_last(found[name], name in maps), images), names)

        context.findings["images"] = calibration.run(update, "calibrating")
        scales = dict(zip(watches, in_order(Watch.scale, watches.values()), strict=True))
        shifts = _Shifts(structure, rows, watches, scales)
        calibration.run(shifts.update, "measuring rounding errors", ERROR_IMAGES)
        scales |= shifts.softmax_scales()
        scales = {name: float(clamp_scale(s, structure.types.get(name, np.float32))) for name, s in scales.items()}
    _edit(model, structure, rows, weights, watches, scales, shifts, settings, context)
    _finish(model, weights, settings, context)


def _finish(model: Model, weights: Sequence[_Weight], settings: QuantiseSettings, context: Context) -> None:
    """What is stored in the end: weights rounded by their output error, on a grid that their type carries, or codes."""
    planned = {weight.site.name: weight for weight in weights}
    written = [(site, planned[site.name]) for site in find_sites(model) if site.name in planned]
    search = settings.clip == "mse"
    grids = [WeightGrid(s, weight.format, weight_scales_of(s), search) for s, weight in written if weight.second_order]
    if grids:
        round_weights(model, grids, context, correct=settings.bias_correction)
    carried = [(site, weight.format) for site, weight in written if weight.format.carried]
    run_all(lambda pair: store_on_grid(*pair), carried)
    if settings.codes:
        context.renamed |= _store_codes(model, {weight.site.name for weight in weights})


@dataclass(frozen=True)
class _Rows:
    """The rows about activations, each with its pair."""

    inputs: list[tuple[PlanRow, TensorPair]]
    outputs: list[tuple[PlanRow, TensorPair]]
    operands: list[tuple[PlanRow, OperandPair]]

    @classmethod
    def of(cls, plan: Sequence[PlanRow]) -> _Rows:
        tensors = rows_with(plan, TensorPair)
        inputs, outputs = ([found for found in tensors if found[1].side == side] for side in ("input", "output"))
        return cls(inputs, outputs, rows_with(plan, OperandPair))

    @property
    def all(self) -> list[tuple[PlanRow, QdqPair]]:
        return [*self.inputs, *self.outputs, *self.operands]


@dataclass(frozen=True)
class _Weight:
    """A site whose weight is quantised, its format, the length of its blocks (0: one scale an output channel), and
    whether it is rounded by what that does to the output."""

    site: Site
    format: Format
    block: int
    second_order: bool


def _contexts(structure: Structure, softmaxes: Sequence[str]) -> list[tuple[str, str]]:
    """Softmax output and V of the attention products whose softmax is quantised: they are multiplied together."""
    pairs = [tuple(tensor.name for tensor in attention.context.inputs[:2]) for attention in structure.attentions]
    return [(softmax, values) for softmax, values in pairs if softmax in softmaxes]


def _watch(pair: QdqPair, sites: Mapping[str, Site], settings: QuantiseSettings) -> Watch:
    readers = [sites[name] for name in pair.sites] if isinstance(pair, TensorPair) and pair.side == "input" else []
    dense = all(site.op != "ConvTranspose" and site.group == 1 for site in readers)
    w = partial(_rows_of, readers) if readers and dense else None
    fmt = pair.numbers
    when, centred = (pair.equalise, pair.centred) if isinstance(pair, TensorPair) else ("never", False)
    return Watch(settings.observer, fmt, when, w, fmt.blocks[0] if fmt.scales else 0, centred)


def _rows_of(readers: Sequence[Site]) -> NDArray[Any]:
    """w[rows, channels] of all readers; each position of a kernel has rows of its own."""
    rows = [site.read().reshape(-1, site.channels) for site in readers]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _reads_maps(row: PlanRow) -> bool:
    """Whether an input's row is about that of a convolution, whose channels are axis 1."""
    return row.op not in LINEAR


def _channels_last(x: NDArray[Any], maps: bool) -> NDArray[Any]:
    return np.moveaxis(x, 1, -1) if maps else x


class _Shifts:
    """The bias shifts of all Linears, gathered over a few batches."""

    def __init__(
        self, structure: Structure, rows: _Rows, watches: Mapping[str, Watch], scales: Mapping[str, float]
    ) -> None:
        inputs = [row for row, _ in rows.inputs]
        self._inputs = {row.tensor: MeanError(watches[row.tensor], scales[row.tensor]) for row in inputs}
        self._maps = {row.tensor for row in inputs if _reads_maps(row)}
        self._contexts: list[tuple[Site | None, str, str, ContextError]] = []
        for pair in (pair for _, pair in rows.operands if pair.operand == "softmax"):
            attention, fmt = structure.attentions[pair.attention], pair.numbers
            softmax, values = (tensor.name for tensor in attention.context.inputs[:2])
            clips = (1.0,) if pair.fixed else SOFTMAX_CLIPS
            formats = fmt, watches[values].format
            error = ContextError([clip * (1 / fmt.largest) for clip in clips], scales[values], formats)
            self._contexts.append((attention.proj, softmax, values, error))

    def softmax_scales(self) -> dict[str, float]:
        """The scale of each quantised softmax output."""
        return {softmax: error.scale for _, softmax, _, error in self._contexts}

    def update(self, found: Arrays, images: int) -> None:
        """Take in a batch of tensors by name."""
        run_all(partial(self._update_input, found), [name for name in self._inputs if name in found])
        run_all(partial(_update_context, found, images), [watched for watched in self._contexts if watched[1] in found])

    def _update_input(self, found: Arrays, name: str) -> None:
        self._inputs[name].update(_channels_last(found[name], name in self._maps))

    def of_input(self, row: PlanRow) -> MeanError | None:
        """The mean error of a site's input a channel, where one was measured."""
        error = self._inputs.get(row.tensor)
        return error if error is not None and error.rows else None

    def of_context(self, site: Site) -> Float32 | None:
        """What rounding softmax and V takes from a projection's mean output, to be added to its bias."""
        for proj, _, _, error in self._contexts:
            if proj is site and error.mean.shape == (site.k,):
                return (-site.read().astype(np.float64) @ error.mean).astype(np.float32)
        return None


def _update_context(found: Arrays, images: int, watched: tuple[Site | None, str, str, ContextError]) -> None:
    _, softmax, values, error = watched
    every = -(-found[softmax].shape[-2] // ERROR_QUERIES)
    error.update(found[softmax][..., ::every, :], found[values], images)


def _edit(
    model: Model,
    structure: Structure,
    rows: _Rows,
    weights: Sequence[_Weight],
    watches: Mapping[str, Watch],
    scales: Mapping[str, float],
    shifts: _Shifts,
    settings: QuantiseSettings,
    context: Context,
) -> None:
    tensors, names = model.graph.tensors(), Names(model)
    sites = {site.name: site for site in structure.sites}
    targets = {row.tensor: tensors[row.tensor] for row, _ in rows.all}
    equalised = []
    for row, pair in rows.outputs:
        factors = watches[row.tensor].factors
        if factors is not None:
            targets[row.tensor] = rescale_output(model, sites[pair.sites[0]], factors, names)
            equalised.append(row.tensor)
    errors: dict[str, tuple[MeanError | None, Float32 | None]] = {}
    for row, pair in rows.inputs:
        chosen = [sites[name] for name in pair.sites]
        errors |= {site.name: (shifts.of_input(row), shifts.of_context(site)) for site in chosen}
        factors = watches[row.tensor].factors
        if factors is not None:
            targets[row.tensor] = rescale_input(model, targets[row.tensor], chosen, factors, names)
            equalised.append(row.tensor)
        offset = watches[row.tensor].offset
        if offset:
            targets[row.tensor] = offset_input(model, targets[row.tensor], chosen, offset, names)
    writer = QdqWriter(model, structure.types, structure.shapes)
    context.progress.start("quantising weights", len(weights))
    for weight, (scales_of, shift) in zip(weights, in_order(partial(_rounded, errors, settings), weights), strict=True):
        bias = own_bias(weight.site)
        if bias is not None and shift is not None:
            shift_bias(bias, shift)
        writer.weight(weight.site, scales_of, weight.format)
        context.progress.advance()
    for row, each in rows.all:
        fmt, target = each.numbers, targets[row.tensor]
        readers = readers_of(each, target, structure)
        if fmt.scales:
            writer.dynamic(target, scales[row.tensor], readers, fmt.blocks[0])
        else:
            writer.activation(target, scales[row.tensor], readers, fmt)
    writer.finish()
    context.progress.finish()
    context.findings |= {"scales": dict(scales), "equalised": equalised}


def _rounded(
    errors: Mapping[str, tuple[MeanError | None, Float32 | None]], settings: QuantiseSettings, weight: _Weight
) -> tuple[Scales, Float32 | None]:
    """A weight's scales, and what its bias absorbs."""
    site, w = weight.site, weight.site.read().astype(np.float32, copy=False)
    scales = scales_for(w, weight.format, method=clip_of(settings.clip, site, weight.format), block=weight.block)
    error, of_context = errors.get(site.name, (None, None))
    if error is None or not settings.bias_correction:
        return scales, None
    if site.op == "ConvTranspose" or site.group > 1:
        return scales, None  # which positions and channels meet differs from output to output
    rounded = w if weight.second_order else fake_quantize(w, scales, weight.format)
    shift = error.shift(_over_positions(site, w), _over_positions(site, rounded))
    return scales, shift if of_context is None else shift + of_context


def clip_of(chosen: Clip, site: Site, fmt: Format) -> Clip:
    """How a weight's scales are found: no value of one that others read, too, can be clipped to a carried grid."""
    return "absmax" if fmt.carried and site.conflicts else chosen


def _over_positions(site: Site, w: Float32) -> Float32:
    """w[out, channels], summed over a kernel's positions: a mean input is the same at each, but at the padding."""
    positions = site.k // site.channels
    return w if positions == 1 else w.reshape(len(w), positions, -1).sum(axis=1)


def _store_codes(model: Model, names: set[str]) -> dict[str, list[str]]:
    """The new names of every site whose codes are stored now; a weight that others read, too, stays float."""
    found: dict[str, list[str]] = {}
    taken = Names(model)
    for site in find_sites(model):
        if site.name in names and site.quantised == "qdq" and not site.conflicts:
            found.setdefault(site.name, []).extend(store_codes(model, site, codes_of(site), taken))
    return found
