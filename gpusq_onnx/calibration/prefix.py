"""Run a graph piece by piece over a data set, keeping on disk what the next piece needs.

Layer-wise pruning wants, before each group of weights, the activations that the part already pruned produces. Starting
from the image each time costs a forward pass a block; here the tensors that cross the current position (the residual
stream, mostly) wait in a scratch folder, batch by batch, and the next piece starts from them. All groups together then
cost one forward pass over the data, and memory holds one batch, whatever the number of images.

What is made of constants alone (a weight's Transpose, its Q/DQ pair) belongs to no position: each piece makes what it
reads, so that it always sees the weights of the moment. Q and DQ run as written.

What crosses is an input of unknown size, but for vectors made of shapes: onnxruntime refuses a Resize or a Reshape
whose sizes are a vector of unknown length.

A runner can be forked: the other keeps the weights that are pinned in it, and so runs on as the dense model while the
first one's weights change.

What is small enough waits in memory.

Limits: scratch space of one boundary's activations for all images (ViT-Base, 1000 images: about 3 GB between fc1 and
fc2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, numpy_helper

from gpusq_onnx.calibration.activations import require_finite
from gpusq_onnx.calibration.store import BatchStore
from gpusq_onnx.data.source import Source
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.origin import reads

IN_MEMORY = 128 << 20  # bytes of activations that wait there, of each runner: ViT-Tiny's of 128 images


class PrefixRunner:
    """A position in a graph's node list, and every batch's tensors there.

    Args:
        model: the model; weights are read when a piece runs, so a piece sees what was pruned before it.
        folder: an empty scratch folder.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        self._model = model
        self._nodes: list[NodeProto] = list(model.export()[0].node)
        self._constants = {c.name: c for c in model.constants()}
        self._store = BatchStore(folder, IN_MEMORY)
        self._header = model.header
        self._rows: list[tuple[int, int]] = []  # of each batch: those that count, and with the filling of a fixed size
        self._makers: dict[str, int] = {}  # of what is made of constants, by output
        for index, node in enumerate(self._nodes):
            read = [name for name in reads(node) if name]
            if read and all(name in self._constants or name in self._makers for name in read):
                self._makers |= dict.fromkeys(node.output, index)
        self._of_shapes: set[str] = set()  # what is made of tensors' shapes and constants: the same in equal batches
        known = self._constants.keys() | self._makers.keys()
        for node in self._nodes:
            if node.op_type in ("Shape", "Size") or all(n in known or n in self._of_shapes for n in reads(node) if n):
                self._of_shapes.update(node.output)
        self._last_use: dict[str, int] = {}
        for index, node in self._data_nodes(0, len(self._nodes)):
            for reader in (*self._constant_nodes([node]), node):
                self._last_use.update(dict.fromkeys(reads(reader), index))
        self._pinned: dict[str, NDArray[Any]] = {}
        self.position = 0

    def start(self, source: Source, batch: int) -> int:
        """Store the images of `source` as the tensors before the first node; returns their number."""
        for data in source.batches(batch):
            self._store.write(len(self._rows), {name: x.copy() for name, x in data.feed.items()})  # it is the reader's
            self._rows.append((data.size, data.rows))
        return sum(counting for counting, _ in self._rows)

    def fork(self, folder: Path) -> PrefixRunner:
        """A runner at the same position that goes on by itself, in another empty folder."""
        other = copy(self)
        other._store, other._pinned = self._store.fork(folder), dict(self._pinned)
        return other

    def pin(self, constants: Iterable[str]) -> None:
        """Go on with the values that these constants have now, whatever the model's become."""
        self._pinned |= {name: values_of(self._constants[name]) for name in constants if name not in self._pinned}

    def has(self, tensor: str) -> bool:
        """Whether the tensor can be read at the current position."""
        return tensor in self._store.names(0)

    def advance(self, position: int) -> None:
        """Run the nodes up to (not including) `position` for every batch."""
        from gpusq_onnx.runtime.ort import Session

        if position <= self.position or not self._rows:
            return
        live = self._store.read_all(0)
        piece = [node for _, node in self._data_nodes(self.position, position)]
        made = [name for node in piece for name in node.output if self._last_use.get(name, -1) >= position]
        kept = [name for name in live if self._last_use.get(name, -1) >= position]
        session = Session(self._piece(piece, live, made), exact_qdq=True) if made else None
        wanted = {name for node in piece for name in reads(node)}
        for index in range(len(self._rows)):
            arrays = self._store.read_all(index)
            crossing = {name: arrays[name] for name in kept}
            if session is not None:
                crossing |= session.run({name: v for name, v in arrays.items() if name in wanted}, made)
            self._store.write(index, crossing)
        self._pinned = {name: v for name, v in self._pinned.items() if self._last_use.get(name, -1) >= position}
        self.position = position

    def read(self, tensor: str) -> Iterator[NDArray[Any]]:
        """The tensor at the current position, batch by batch, without the rows that fill a fixed batch up."""
        for index, (counting, rows) in enumerate(self._rows):
            values = self._store.read(index, tensor)
            values = values[: len(values) * counting // rows]
            require_finite(self._model, {tensor: values})
            yield values

    def _data_nodes(self, start: int, stop: int) -> Iterator[tuple[int, NodeProto]]:
        """The nodes from `start` to before `stop` that depend on the data, with their indices."""
        for index in range(start, stop):
            if all(self._makers.get(name) != index for name in self._nodes[index].output):
                yield index, self._nodes[index]

    def _constant_nodes(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """The nodes that make of constants what `nodes` read, in the graph's order."""
        needed: set[int] = set()
        ahead = list(nodes)
        while ahead:
            found = {self._makers[name] for name in reads(ahead.pop()) if name in self._makers} - needed
            needed |= found
            ahead += [self._nodes[index] for index in found]
        return [self._nodes[index] for index in sorted(needed)]

    def _piece(self, nodes: list[NodeProto], live: Mapping[str, NDArray[Any]], outputs: list[str]) -> bytes:
        nodes = [*self._constant_nodes(nodes), *nodes]
        graph = GraphProto(name="piece", node=nodes)
        read = {name for node in nodes for name in reads(node)}
        for name in sorted(read & self._constants.keys()):
            values = self._pinned[name] if name in self._pinned else values_of(self._constants[name])
            graph.initializer.append(numpy_helper.from_array(values, name))
        for name in (n for n in live if n in read):
            kind = onnx.helper.np_dtype_to_tensor_dtype(live[name].dtype)
            dims = live[name].shape if self._is_fixed(name, live[name].shape) else [None] * live[name].ndim
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
        graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
        model = onnx.ModelProto(ir_version=self._header.ir_version, graph=graph)
        model.opset_import.extend(self._header.opset_import)
        return bytes(model.SerializeToString())

    def _is_fixed(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether every batch has this shape here: a vector of sizes, if the last batch, which may be short, has it."""
        if name not in self._of_shapes or len(shape) != 1:
            return False
        return self._store.read(len(self._rows) - 1, name).shape == shape
