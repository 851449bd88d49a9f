"""Channels of a graph that may change places without changing what it computes, and the change itself.

A site's output channels are followed to whatever reads them. They move together with everything that has an element for
each of them:

    rows       of the weights that write them, and their biases
    vectors    of elementwise operators and norms on their way (layer scale, LayerNorm, BatchNorm), depthwise kernels
    columns    of the weights that reduce over them

    passes         layouts (Reshape, Transpose, Split, Slice, Gather, Concat, ...), element by element
    elementwise    activation functions; sums and products with constants, with one value a token, with other channels,
                   which then move together (gate and up of a SwiGLU)
    attention      MatMul(weights, v): channels of a head stay in their head
    norms          over channels: those that are normalised together may change places

Anything else, and a graph output, leaves the channels where they are. So does what is not certain: an unknown shape, a
weight or vector that others read, channels that are concatenated with what is no channel. Fused qkv, separate q, k, v,
grouped keys, windows and patch merging need no rule of their own: `graph.channels` compares elements.

Limits: arrays of eight bytes an element for the tensors of one image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.channels import ChannelLabels, Channels, Ints, meetings
from gpusq_onnx.graph.dataflow import is_depthwise
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.moves import Movable
from gpusq_onnx.graph.operators import MEASURES, Is, operators
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure

_WHOLE = frozenset("Identity Cast Dropout Reshape Flatten Squeeze Unsqueeze".split())
_PARTS = frozenset("Transpose Split Slice Gather Expand Concat".split())
_ELEMENTWISE = operators(Is.ACTIVATES | Is.AFFINE) - {"BatchNormalization"} | frozenset(  # its vectors are of axis 1
    "Neg Exp Sqrt Abs Log Reciprocal Clip Min Max Where Not".split()
)
_NORMS = frozenset("LayerNormalization RMSNormalization SimplifiedLayerNormalization".split())


def find_movable(model: Model, structure: Structure) -> Movable:
    """Follow all channels of a float model."""
    return _Follower(model, structure).run()


class _Refused(Exception):
    """These channels stay; the text says why."""


class _Follower:
    def __init__(self, model: Model, structure: Structure) -> None:
        self._nodes: list[gs.Node] = list(model.graph.nodes)
        self._known = {id(node) for node in self._nodes}
        self._outputs = structure.flow.outputs
        self._sites = structure.sites
        self._owner = {id(reader): site for site in structure.sites for reader in site.readers}
        self._shapes = structure.shapes
        starts = np.cumsum([0, *(site.out for site in self._sites)])
        spans = zip(self._sites, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        self._numbers = {site: np.arange(start, stop) for site, start, stop in spans}
        self._channels = Channels(np.repeat(np.arange(len(self._sites)), [site.out for site in self._sites]))
        self._labels: dict[str, ChannelLabels] = {}
        self._left = Counter(tensor.name for node in self._nodes for tensor in node.inputs)
        self._found = Movable(count=int(starts[-1]))
        self._reads: Counter[Site] = Counter()

    def run(self) -> Movable:
        for node in self._nodes:
            self._visit(node)
        for site, channels in list(self._found.columns.items()):
            if self._reads[site] != len(site.readers):
                self._channels.pin(channels, f"the weight of {site.name} multiplies something else, too")
        for site, channels in self._found.columns.items():
            if (why := self._channels.why(channels)) is not None:
                self._found.fixed.setdefault(site, why)
        self._found.cohorts = self._channels.cohorts()
        return self._found

    def _visit(self, node: gs.Node) -> None:
        read = [self._labels.get(tensor.name) for tensor in node.inputs]
        labelled = [] if node.op in MEASURES else [labels for labels in read if labels is not None]
        try:
            made = self._follow(node, read) if labelled else None
        except _Refused as refused:
            made = None
            for labels in labelled:
                self._channels.pin(labels.channel, str(refused))
        site = self._owner.get(id(node))
        if site is not None and made is None:
            if not labelled:
                self._found.fixed.setdefault(site, "its input is not made of output channels of other weights alone")
            made = self._start(site, node)
        for tensor in node.inputs:
            self._left[tensor.name] -= 1
            if not self._left[tensor.name]:
                self._labels.pop(tensor.name, None)
        for tensor, labels in zip(node.outputs, made or (), strict=False):
            self._keep(tensor, labels)

    def _keep(self, tensor: gs.Tensor, labels: ChannelLabels) -> None:
        if tensor.name in self._outputs:
            self._channels.pin(labels.channel, f"{tensor.name} is an output of the graph")
        elif any(id(reader) not in self._known for reader in tensor.outputs):
            self._channels.pin(labels.channel, f"a subgraph reads {tensor.name}")
        elif labels.channel.shape != self._shape(tensor):
            self._channels.pin(labels.channel, f"the shape of {tensor.name} is not known")
        else:
            self._labels[tensor.name] = labels

    def _shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The shape for one image; None where a dimension is not known."""
        shape = self._shapes.get(tensor.name)
        if shape is None or not all(isinstance(size, int) for size in shape):
            return None
        return tuple(int(size) for size in shape if isinstance(size, int))

    def _sized(self, tensor: gs.Tensor) -> tuple[int, ...]:
        shape = self._shape(tensor)
        if shape is None:
            raise _Refused(f"the shape of {tensor.name} is not known")
        return shape

    def _start(self, site: Site, node: gs.Node) -> list[ChannelLabels] | None:
        """Label what a site writes."""
        numbers, shape = self._numbers[site], self._shape(node.outputs[0])
        axis = -1 if site.is_linear else 1
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        try:
            if site.conflicts or site.unfit or site.group != 1 or site.quantised:
                raise _Refused(f"the weight of {site.name} cannot be changed for one reader alone")
            if shape is None or len(shape) < 2 or shape[axis] != site.out:
                raise _Refused(f"the shape of {node.outputs[0].name} is not known")
            if bias is not None:
                self._carry(bias, numbers)
        except _Refused as refused:
            self._channels.pin(numbers, str(refused))
            return None
        self._found.rows[site] = numbers
        return [ChannelLabels.fresh(numbers, shape, axis)]

    def _carry(self, vector: gs.Tensor, channels: Ints) -> None:
        """Let a constant's elements move with these channels."""
        if not isinstance(vector, gs.Constant) or len(vector.outputs) != 1 or vector.name in self._outputs:
            raise _Refused(f"others read {vector.name}, too, or it is computed")
        if int(np.prod(vector.shape)) != len(channels):
            raise _Refused(f"{vector.name} does not have one element a channel")
        self._found.vectors.append((vector, channels))

    def _follow(self, node: gs.Node, read: Sequence[ChannelLabels | None]) -> list[ChannelLabels] | None:
        """What the outputs are made of; None where channels end (in a site)."""
        site = self._owner.get(id(node))
        if site is not None:
            data = 1 - site.operand(node)
            if [i for i, labels in enumerate(read) if labels is not None] != [data]:
                raise _Refused(f"{node.op} {node.name} reads it as a bias")
            return self._reduce(site, node, read[data])
        if node.op in _WHOLE and read[0] is not None:
            shape = self._sized(node.outputs[0])
            return [read[0].moved(read[0].channel.reshape(shape), read[0].place.reshape(shape), whole=True)]
        if node.op in _PARTS and (moved := self._part(node, read)) is not None:
            return moved
        if node.op in _ELEMENTWISE:
            return [self._elementwise(node, read)]
        if node.op in _NORMS and read[0] is not None:
            return [self._norm(node, read[0])]
        if node.op == "BatchNormalization" and read[0] is not None:
            return [self._batch_norm(node, read[0])]
        if node.op == "MatMul" and read[0] is None and read[1] is not None:
            return [self._weighted(node, read[1])]
        raise _Refused(f"{node.op} {node.name} reads it".rstrip())

    def _reduce(self, site: Site, node: gs.Node, labels: ChannelLabels | None) -> list[ChannelLabels] | None:
        assert labels is not None
        axis = -1 if site.is_linear else 1
        rows = labels.rows(axis)
        channels = self._same_in_all_rows(rows, f"{node.op} {node.name}")
        if site.conflicts or site.unfit or site.quantised or (not site.is_linear and len(site.weight.shape) < 3):
            raise _Refused(f"the weight of {site.name} cannot be changed for one reader alone")
        if is_depthwise(node) and site.out == len(channels) and len(site.readers) == 1:
            self._each_row(rows)
            if len(node.inputs) > 2 and node.inputs[2].name:
                self._carry(node.inputs[2], channels)
            self._found.rows[site] = channels
            self._found.fixed[site] = "each of its channels is convolved by itself"
            return [ChannelLabels.fresh(channels, self._sized(node.outputs[0]), 1)]
        if site.group != 1:
            raise _Refused(f"{node.op} {node.name} reads it in groups")
        self._each_row(rows)
        if not np.array_equal(self._found.columns.setdefault(site, channels), channels):
            self._channels.pin(self._found.columns[site], f"the weight of {site.name} multiplies something else, too")
            raise _Refused(f"the weight of {site.name} multiplies something else, too")
        self._reads[site] += 1
        return None

    def _same_in_all_rows(self, rows: ChannelLabels, reader: str) -> Ints:
        if not (rows.channel == rows.channel[:1]).all():
            raise _Refused(f"{reader} sees other channels at other places")
        channels: Ints = rows.channel[0]
        return channels

    def _each_row(self, rows: ChannelLabels) -> None:
        number = np.arange(len(rows.channel))[:, None]
        self._channels.refine(rows.channel, rows.place, np.broadcast_to(number, rows.channel.shape))

    def _elementwise(self, node: gs.Node, read: Sequence[ChannelLabels | None]) -> ChannelLabels:
        shape = self._sized(node.outputs[0])
        first = next(labels for labels in read if labels is not None)
        if first.channel.shape != shape:
            raise _Refused(f"{node.op} {node.name} repeats it")
        if not first.seen:
            self._channels.refine(first.channel, first.place)
        for tensor, labels in zip(node.inputs, read, strict=True):
            if labels is first or not tensor.name:
                continue
            if labels is not None:
                if labels.channel.shape != shape or not self._channels.tie(first, labels):
                    raise _Refused(f"{node.op} {node.name} combines it with other channels")
            else:
                self._beside(tensor, first)
        return ChannelLabels(first.channel, first.place, seen=True)

    def _beside(self, tensor: gs.Tensor, labels: ChannelLabels) -> None:
        """Look at the other operand of an elementwise operator: a vector that moves, or what tells channels apart."""
        own = tuple(tensor.shape) if isinstance(tensor, gs.Constant) else self._sized(tensor)
        size = int(np.prod(own, dtype=np.int64))
        if size == 1:
            return
        element = np.broadcast_to(np.arange(size).reshape(own), labels.channel.shape)
        pairs = meetings(element, labels.channel)
        if isinstance(tensor, gs.Constant) and pairs.shape[1] == size == len(np.unique(pairs[1])):
            self._carry(tensor, pairs[1])
        else:
            self._channels.refine(labels.channel, labels.place, element)

    def _norm(self, node: gs.Node, labels: ChannelLabels) -> ChannelLabels:
        rank = labels.channel.ndim
        if node.attrs.get("axis", -1) not in (-1, rank - 1):
            raise _Refused(f"{node.op} {node.name} normalises over more than channels")
        rows = labels.rows(-1)
        channels = self._same_in_all_rows(rows, f"{node.op} {node.name}")
        self._each_row(rows)
        for vector in node.inputs[1:3]:
            if vector.name:
                self._carry(vector, channels)
        return labels

    def _batch_norm(self, node: gs.Node, labels: ChannelLabels) -> ChannelLabels:
        rows = labels.rows(1)
        channels = self._same_in_all_rows(rows, f"{node.op} {node.name}")
        self._each_row(rows)
        for vector in node.inputs[1:5]:
            self._carry(vector, channels)
        return labels

    def _weighted(self, node: gs.Node, v: ChannelLabels) -> ChannelLabels:
        """MatMul(weights, v): each column of each matrix keeps its channel; the rows are other places."""
        shape = self._sized(node.outputs[0])
        matrices = (*shape[:-2], *v.channel.shape[-2:])
        channel, place = (np.broadcast_to(a, matrices) for a in (v.channel, v.place))
        if not (channel == channel[..., :1, :]).all():
            raise _Refused(f"{node.op} {node.name} sums over other channels")
        row = np.arange(np.prod(matrices[:-1], dtype=np.int64)).reshape(*matrices[:-1], 1)
        self._channels.refine(channel, place, np.broadcast_to(row, matrices))
        places = np.arange(np.prod(shape[:-1], dtype=np.int64)).reshape(*shape[:-1], 1)
        return ChannelLabels(np.broadcast_to(channel[..., :1, :], shape), np.broadcast_to(places, shape))

    def _part(self, node: gs.Node, read: Sequence[ChannelLabels | None]) -> list[ChannelLabels] | None:
        """The outputs of a layout operator that permutes, cuts or joins."""
        if node.op == "Concat":
            if not all(read):
                raise _Refused(f"{node.op} {node.name} joins it with what is made otherwise")
            axis = int(node.attrs["axis"])
            known = [labels for labels in read if labels is not None]
            joined = (np.concatenate(arrays, axis) for arrays in ([k.channel for k in known], [k.place for k in known]))
            channel, place = joined
            return [ChannelLabels(channel, place)]
        labels = read[0]
        if labels is None:
            return None
        whole, indices = node.op == "Transpose", [self._indexing(node, labels.channel.shape)]
        if node.op == "Split":
            indices = self._pieces(node, labels.channel.shape)
        return [labels.moved(index(labels.channel), index(labels.place), whole=whole) for index in indices]

    def _indexing(self, node: gs.Node, shape: tuple[int, ...]) -> Any:
        """What one-output layout operators do to an array."""
        if node.op == "Transpose":
            return lambda a: a.transpose(node.attrs.get("perm"))
        if node.op == "Expand":
            out = self._sized(node.outputs[0])
            return lambda a: np.broadcast_to(a, out)
        if node.op == "Gather":
            axis, indices = int(node.attrs.get("axis", 0)), self._constant(node, 1)
            return lambda a: np.take(a, indices, axis)
        if node.op == "Slice":
            starts, stops = self._constant(node, 1).tolist(), self._constant(node, 2).tolist()
            axes = self._constant(node, 3).tolist() if len(node.inputs) > 3 else list(range(len(starts)))
            steps = self._constant(node, 4).tolist() if len(node.inputs) > 4 else [1] * len(starts)
            cut = [slice(None)] * len(shape)
            for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
                if step < 1:
                    raise _Refused(f"{node.op} {node.name} reverses it")
                cut[axis] = slice(start, stop, step)
            return lambda a: a[tuple(cut)]
        return None

    def _pieces(self, node: gs.Node, shape: tuple[int, ...]) -> list[Any]:
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        stops = np.cumsum([self._sized(tensor)[axis] for tensor in node.outputs]).tolist()
        cuts = [(slice(None),) * axis + (slice(a, b),) for a, b in zip([0, *stops[:-1]], stops, strict=True)]
        return [lambda a, cut=cut: a[cut] for cut in cuts]

    def _constant(self, node: gs.Node, index: int) -> NDArray[Any]:
        tensor = node.inputs[index]
        if not isinstance(tensor, gs.Constant):
            raise _Refused(f"{node.op} {node.name} cuts it at places that are computed")
        return values_of(tensor)
