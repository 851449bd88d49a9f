"""Rewrite a float32 graph to FP16, given the nodes that stay in FP32: constants converted, Casts where types meet.

    constants   stored in FP16 where FP16 nodes read them, twice where both kinds do; no Cast is put on one
    tensors     one Cast for all readers of the other type, right after what makes the tensor
    Casts       that were there are retyped; what would read a Cast of FP16 to FP16 reads its source
    border      graph inputs, outputs and what subgraphs read keep name and type (or become FP16, on request)

Scales become FP16, clamped at 6.1e-5; INT8 codes of a clamped scale are rounded again, so that the weight stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from gpusq_onnx.graph.edits import Names, unlink
from gpusq_onnx.graph.fp16.names import free_names
from gpusq_onnx.graph.fp16.numeric import is_single, scale_to_half, to_half
from gpusq_onnx.graph.fp16.policy import HALF, SINGLE, computes, half_slots
from gpusq_onnx.graph.model import Model, data_type_of, type_name, values_of
from gpusq_onnx.graph.operators import QDQ
from gpusq_onnx.graph.shapes import Types
from gpusq_onnx.quant.formats import natural
from gpusq_onnx.quant.scales import Scales


@dataclass
class Halved:
    """What was done: Casts inserted (source tensor to target type), and the scales that FP16 had to raise."""

    casts: list[str] = field(default_factory=list)
    clamped: list[str] = field(default_factory=list)


def halve(model: Model, types: Types, single: Collection[int], *, io: bool = False) -> Halved:
    """Give every node that is not in `single` (by id) FP16 inputs and outputs where its operator takes them.

    Args:
        model: edited in place.
        types: element types of its tensors as it is now.
        single: ids of the nodes that stay in FP32 (`precision.kept_single`).
        io: float32 graph inputs and outputs become FP16, too.
    """
    return _Edit(model, types, single, io).run()


class _Edit:
    def __init__(self, model: Model, types: Types, single: Collection[int], io: bool) -> None:
        self.model, self.types, self.single, self.io = model, types, single, io
        self.fresh = Names(model).fresh
        self.done = Halved()
        self.made: dict[str, np.dtype[Any]] = {}  # the type that a float tensor has from now on
        self.read_inside, self.outputs = _read_inside(model), {tensor.name for tensor in model.graph.outputs}
        self.fixed = self._fixed()  # tensors that keep name and type, whatever makes them
        self.other: dict[str, gs.Tensor] = {}  # by tensor name: the same in the other type
        self.after: dict[int, list[gs.Node]] = {}

    def run(self) -> Halved:
        nodes = list(self.model.graph.nodes)
        wants = {id(node): self._wants(node) for node in nodes}
        self._scales(nodes)
        self._constants(nodes, wants)
        for tensor in self.model.graph.inputs:
            if self._float(tensor):
                self.made[tensor.name] = self.fixed.get(tensor.name, SINGLE)
        for node in nodes:
            self._node(node, wants[id(node)])
        self._place()
        self._border()
        free_names(self.model)
        return self.done

    def _float(self, tensor: gs.Tensor) -> bool:
        return is_single(tensor, self.types)

    def _fixed(self) -> dict[str, np.dtype[Any]]:
        border = HALF if self.io else SINGLE
        fixed = {t.name: border for t in (*self.model.graph.inputs, *self.model.graph.outputs) if self._float(t)}
        return fixed | {name: SINGLE for name in self.read_inside if self.types.get(name) == SINGLE}

    def _wants(self, node: gs.Node) -> tuple[list[Any], list[Any]]:
        """The float type of every input and output from now on; None for what is not float32."""
        if not computes(node):
            return [None] * len(node.inputs), [None] * len(node.outputs)
        if node.op == "Cast" and id(node) not in self.single:
            return [None], [HALF if self._float(node.outputs[0]) else None]
        allowed = half_slots(node, self.model.opset)
        inputs, outputs = (
            [
                (HALF if half and id(node) not in self.single else SINGLE) if self._float(tensor) else None
                for tensor, half in zip(tensors, slots, strict=True)
            ]
            for tensors, slots in zip((node.inputs, node.outputs), allowed, strict=True)
        )
        return inputs, outputs

    def _scales(self, nodes: list[gs.Node]) -> None:
        """Every scale as FP16 holds it, also where it goes on being stored in FP32; raised where it is subnormal."""
        users: dict[int, list[gs.Node]] = {}
        scales: dict[int, gs.Constant] = {}
        for node in nodes:
            if node.op in QDQ and isinstance(node.inputs[1], gs.Constant):
                scale = node.inputs[1]
                users.setdefault(id(scale), []).append(node)
                scales[id(scale)] = scale
        for key, scale in scales.items():
            if data_type_of(scale) != TensorProto.FLOAT:
                continue
            old = values_of(scale)
            new = np.asarray(scale_to_half(old), np.float32)
            raised = new > old * 1.01
            if np.any(raised):
                self.done.clamped.append(scale.name)
                for node in users[key]:
                    if node.op == "DequantizeLinear" and isinstance(node.inputs[0], gs.Constant):
                        _round_again(node, old, new)
            scale.values = new

    def _constants(self, nodes: list[gs.Node], wants: Mapping[int, tuple[list[Any], list[Any]]]) -> None:
        halves: dict[int, list[tuple[gs.Node, int]]] = {}
        found: dict[int, gs.Constant] = {}
        singles: set[int] = set()
        for node in nodes:
            for index, (tensor, want) in enumerate(zip(node.inputs, wants[id(node)][0], strict=True)):
                if not isinstance(tensor, gs.Constant) or not self._float(tensor):
                    continue
                found[id(tensor)] = tensor
                if want == HALF or (want is None and node.op == "Cast"):
                    halves.setdefault(id(tensor), []).append((node, index))
                else:
                    singles.add(id(tensor))
        for key, places in halves.items():
            constant = found[key]
            if key in singles or constant.name in self.fixed:
                copy = gs.Constant(self.fresh(f"{constant.name}_fp16"), to_half(values_of(constant)))
                for node, index in places:
                    node.inputs[index] = copy
            else:
                constant.values = to_half(values_of(constant))

    def _node(self, node: gs.Node, wants: tuple[list[Any], list[Any]]) -> None:
        for index, want in enumerate(wants[0]):
            tensor = node.inputs[index]
            if want is None or isinstance(tensor, gs.Constant) or self._type(tensor) == want:
                continue
            node.inputs[index] = self._cast(tensor, want)
        if node.op == "Cast" and self._type(node.inputs[0]) == HALF:
            self._bypass(node)
            return
        if node.op == "Cast" and wants[1][0] == HALF:
            node.attrs["to"] = TensorProto.FLOAT16
        for index, makes in enumerate(wants[1]):
            if makes is not None:
                self._output(node, index, makes)

    def _output(self, node: gs.Node, index: int, makes: np.dtype[Any]) -> None:
        tensor = node.outputs[index]
        keeps = self.fixed.get(tensor.name, makes)
        if keeps == makes:
            tensor.dtype, self.made[tensor.name] = makes, makes
            return
        # The name belongs to the border: what the node makes gets a new one, and a Cast makes the old.
        made = gs.Variable(self.fresh(f"{tensor.name}{_suffix(makes)}"), makes, tensor.shape)
        node.outputs[index] = made
        self.made[made.name], self.made[tensor.name] = makes, keeps
        self.other[made.name], self.other[tensor.name] = tensor, made
        tensor.dtype = keeps
        self._insert(node, made, tensor, keeps)

    def _cast(self, tensor: gs.Tensor, want: np.dtype[Any]) -> gs.Tensor:
        if tensor.name not in self.other:
            producer = tensor.inputs[0] if tensor.inputs else None
            if producer is not None and producer.op == "Cast" and want == HALF and self._only_halves(tensor):
                producer.attrs["to"] = TensorProto.FLOAT16
                tensor.dtype, self.made[tensor.name] = HALF, HALF
                return tensor
            target = gs.Variable(self.fresh(f"{tensor.name}{_suffix(want)}"), want, tensor.shape)
            self.made[target.name] = want
            self.other[tensor.name], self.other[target.name] = target, tensor
            self._insert(producer, tensor, target, want)
        return self.other[tensor.name]

    def _only_halves(self, tensor: gs.Tensor) -> bool:
        if tensor.name in self.fixed:
            return False
        for node in tensor.outputs:
            inputs = self._wants(node)[0]
            if any(read is tensor and want == SINGLE for read, want in zip(node.inputs, inputs, strict=True)):
                return False
        return True

    def _insert(self, producer: gs.Node | None, source: gs.Tensor, target: gs.Tensor, to: np.dtype[Any]) -> None:
        kind = TensorProto.FLOAT16 if to == HALF else TensorProto.FLOAT
        name = self.fresh(f"{source.name}_Cast{_suffix(to)}")
        node = gs.Node("Cast", name, {"to": kind}, [source], [target])
        self.after.setdefault(0 if producer is None else id(producer), []).append(node)
        self.done.casts.append(f"{source.name} to {to.name}")

    def _type(self, tensor: gs.Tensor) -> np.dtype[Any] | None:
        """The type that a tensor has from now on; None where it is not known."""
        stored = np.dtype(tensor.dtype) if isinstance(tensor, gs.Constant) else None
        return stored or self.made.get(tensor.name, self.types.get(tensor.name))

    def _bypass(self, node: gs.Node) -> None:
        """Let what reads a Cast of FP16 in FP16 read its source; the Cast goes where nothing else reads it."""
        source, made = node.inputs[0], node.outputs[0]
        single = self._float(made)
        if made.name not in self.read_inside and (single or self._type(made) == HALF):
            for reader in {id(reader): reader for reader in made.outputs}.values():
                for index, want in enumerate(self._wants(reader)[0]):
                    if reader.inputs[index] is made and want != SINGLE:
                        reader.inputs[index] = source
            if not made.outputs and made.name not in self.outputs:
                unlink(node)
                return
        if single:
            kind = self.fixed.get(made.name, SINGLE)
            made.dtype, self.made[made.name] = kind, kind
            node.attrs["to"] = TensorProto.FLOAT16 if kind == HALF else TensorProto.FLOAT

    def _place(self) -> None:
        nodes = self.after.pop(0, [])
        for node in self.model.graph.nodes:
            nodes += [*([node] if node.outputs else []), *self.after.get(id(node), [])]
        self.model.graph.nodes[:] = nodes

    def _border(self) -> None:
        if not self.io:
            return
        for value in (*self.model.frame.input, *self.model.frame.output):
            if value.name in self.fixed and self.fixed[value.name] == HALF:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        for tensor in (*self.model.graph.inputs, *self.model.graph.outputs):
            if self.fixed.get(tensor.name) == HALF:
                tensor.dtype = HALF


def _read_inside(model: Model) -> set[str]:
    """The names that subgraphs read."""
    graphs = model.graph.subgraphs(recursive=True)
    return {t.name for graph in graphs for t in (*graph.outputs, *(t for node in graph.nodes for t in node.inputs))}


def _suffix(kind: np.dtype[Any]) -> str:
    return "_fp16" if kind == HALF else "_fp32"


def _round_again(node: gs.Node, old: NDArray[Any], new: NDArray[Any]) -> None:
    """Codes at the raised scale."""
    codes = values_of(node.inputs[0])
    fmt = natural(type_name(node.inputs[0]))
    assert fmt is not None, node.name
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    ratio = Scales(np.asarray(old / new, np.float32), axis if old.ndim else None, block).along(codes.shape)
    node.inputs[0].values = fmt.round_steps(codes.astype(np.float32) * ratio).astype(codes.dtype)
