"""Sites: every weight of a MatMul, Gemm, Conv or ConvTranspose, as w[out, k], whatever form the exporter gave it.

Forms that are found (and their source):
  1. MatMul(x, W[K, N])                              torch legacy and dynamo
  2. Gemm(x, W[N, K], transB=1) and transB=0         legacy rank 2; onnxsim, onnxslim
  3. MatMul(x, Transpose(W)), Identity, Cast, Squeeze  unoptimised exports; equal initializers shared through Identity
  4. MatMul(x, Split(W)[i]), Slice                   packed in-projections (SigLIP pooling)
  5. a Constant node instead of an initializer       made an initializer on load
  6. W -> QuantizeLinear -> DequantizeLinear, or INT8 W -> DequantizeLinear
  7. Conv(x, W[O, C, *spatial]), grouped, too; ConvTranspose(x, W[C, O, *spatial])

One site is one matrix that one or more nodes multiply with. A weight that several sites see, or that another operator
reads as well, carries the fact in `conflicts`: changing it for one reader would change it for the others. A product
that is no layer at all (of two constants, or with the constant on the left) carries it in `unfit`.
"""

from __future__ import annotations

import ast
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.model import Model, data_type_of, peeked, type_name, values_of
from gpusq_onnx.graph.operators import LINEAR, QUANTISERS, WEIGHTS, constant_added, is_standard
from gpusq_onnx.graph.qdq.quantize_nodes import code_type, is_grid_clip
from gpusq_onnx.graph.trace import weight_of
from gpusq_onnx.graph.views import View
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.sparsity.patterns import Pattern, patterns_of

OPERATORS = tuple(WEIGHTS)
_FLOATS = ("float", "float16", "bfloat16", "double")
_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_CORNER = 64  # rows and columns; a multiple of every group in `PATTERNS`


class _PatternsSeen(NamedTuple):
    """The patterns that an initializer's values follow, by how they are read and how long their groups may get."""

    values: weakref.ref[Any]
    patterns: dict[tuple[View, int], tuple[Pattern, ...]]


@dataclass(eq=False)
class Site:
    """One weight matrix and the nodes that multiply with it.

    Attributes:
        weight: the stored initializer.
        view: from the stored array to w[out, k].
        readers: the MatMul, Gemm, Conv or ConvTranspose nodes, in graph order.
        trail: the nodes between the initializer and the readers (Transpose, Split, QuantizeLinear, ...).
        out, k: output channels and reduction length.
        quantised: "" (float), "qdq" (float weight before Q/DQ), or the type of codes stored after DQ alone ("int8").
        conflicts: reasons why the stored values must not change for this reader alone.
        given: the graph's caller gets what a reader computes, so it is made in float.
        apart: another site reads the same part of the weight along another axis.
        unfit: reasons why the product is no layer that could be pruned or quantised.
        role, block: filled in by `gpusq_onnx.graph.structure`.
    """

    weight: gs.Constant
    view: View
    readers: list[gs.Node]
    trail: list[gs.Node]
    out: int
    k: int
    quantised: str = ""
    conflicts: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    given: bool = False
    apart: bool = False
    role: str = ""
    block: int | None = None

    @property
    def name(self) -> str:
        """The stored initializer's name, with the part that a Split cuts, and the axis where readers differ in it."""
        return f"{self.part}[axis {self.k_axis}]" if self.apart else self.part

    @property
    def part(self) -> str:
        """The name of what is stored: sites that read one part along different axes share it."""
        return str(self.weight.name) + "".join(f"[{c.start}:{c.stop}]" for _, c in self.view.cuts())

    @property
    def op(self) -> str:
        """One of `OPERATORS`."""
        return str(self.readers[0].op)

    @property
    def is_linear(self) -> bool:
        """Whether it is a matrix product whose channels are the last axis, and no convolution."""
        return self.op in LINEAR

    @property
    def group(self) -> int:
        """The groups of a convolution; 1 for a matrix product."""
        return int(self.readers[0].attrs.get("group", 1)) if not self.is_linear else 1

    @property
    def channels(self) -> int:
        """What k counts without a kernel's positions: the input channels of one group."""
        return self.k // math.prod(self.weight.shape[2:]) if not self.is_linear else self.k

    @property
    def path(self) -> str:
        """The module path, as the exporter recorded it (empty where it did not)."""
        return module_path(self.readers[0])

    @property
    def place(self) -> str:
        """Who reads it first, as errors say where something is."""
        return f"read by {node_label(self.readers[0])}"

    @property
    def activation(self) -> gs.Tensor:
        """The data operand of the first reader, before any Q/DQ."""
        reader = self.readers[0]
        return before_qdq(reader.inputs[1 - self.operand(reader)])

    @property
    def activations(self) -> list[gs.Tensor]:
        """The data operands of all readers, before any Q/DQ, each once: several where a weight is tied."""
        read = [before_qdq(reader.inputs[1 - self.operand(reader)]) for reader in self.readers]
        return list({tensor.name: tensor for tensor in read}.values())

    @property
    def outputs(self) -> list[gs.Tensor]:
        """The readers' outputs, after their biases."""
        return [_after_bias(reader)[0] for reader in self.readers]

    def operand(self, reader: gs.Node) -> int:
        """Which input of `reader` the weight is: 1, or 0 for a constant on the left of a MatMul."""
        made = [self.weight, *(tensor for node in self.trail for tensor in node.outputs)]
        left, right = (any(read is tensor for tensor in made) for read in reader.inputs[:2])
        return 0 if left and not right else 1

    @property
    def output(self) -> gs.Tensor:
        """The first reader's output, after its bias."""
        return _after_bias(self.readers[0])[0]

    @property
    def bias(self) -> gs.Constant | None:
        """The bias of the first reader ([out]), wherever the exporter put it."""
        return _after_bias(self.readers[0])[1]

    @property
    def k_axis(self) -> int:
        """The stored array's axis that the groups of four run along."""
        return self.view.stored_axis(1)

    @property
    def dtype(self) -> str:
        """The stored type's ONNX name, in lower case."""
        return type_name(self.weight)

    @property
    def is_float(self) -> bool:
        """Whether numbers are stored, not codes of them."""
        return self.dtype in _FLOATS

    @property
    def code_type(self) -> str:
        """The ONNX name of the type of the weight's codes, in lower case; "" for a float weight."""
        written = (code_type(node) for node in self.trail if node.op == "QuantizeLinear")
        return next(written, "") if self.quantised == "qdq" else self.quantised

    @property
    def has_scales(self) -> bool:
        """Whether a DequantizeLinear restores the weight."""
        return any(node.op == "DequantizeLinear" for node in self.trail)

    @property
    def reads_as(self) -> np.dtype[Any]:
        """The float type that the readers compute in: the stored one, unless a Cast is between."""
        casts = (node.attrs["to"] for node in self.trail if node.op == "Cast")
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(next(casts, data_type_of(self.weight))))

    def read(self) -> NDArray[Any]:
        """w[out, k] in the stored type (integer codes where the weight is stored quantised); treat as read-only."""
        return self.view.read(values_of(self.weight))

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The rows of `PATTERNS` that w follows along k, what leaves least first; none: dense.

        Found out once for the values that the initializer has, which passes replace and do not edit.
        """
        seen: _PatternsSeen | None = getattr(self.weight, "patterns_seen", None)
        if seen is None or seen.values() is not self.weight._values:
            seen = self.weight.patterns_seen = _PatternsSeen(weakref.ref(self.weight._values), {})
        key = self.view, self.channels
        if key not in seen.patterns:
            corner = self.view.read(peeked(self.weight))[:_CORNER, :_CORNER]  # a dense matrix is known by it
            seen.patterns[key] = patterns_of(corner, self.channels) and patterns_of(self.read(), self.channels)
        return seen.patterns[key]

    def write(self, w: NDArray[Any]) -> None:
        """Store w[out, k]; shape and type must be the stored ones."""
        assert w.shape == (self.out, self.k), (self.name, w.shape)
        assert w.dtype == self.weight.dtype, (self.name, w.dtype)
        shadow = np.broadcast_to(np.zeros((), w.dtype), tuple(self.weight.shape))
        stored = values_of(self.weight) if self.view.cuts() else shadow  # only a cut keeps old values
        self.weight.values = self.view.write(w, stored)


def find_sites(model: Model, flow: Dataflow | None = None) -> list[Site]:
    """All sites of the main graph in graph order, without roles (see `structure.analyse`)."""
    flow = flow or Dataflow(model)
    found: dict[tuple[str, View], Site] = {}
    for node in filter(is_standard, model.graph.nodes):  # another domain's Conv may lay its weight out otherwise
        for operand in WEIGHTS.get(node.op, ()):
            trace = weight_of(node, operand)
            if trace is None:
                continue
            weight, view = trace.weight, trace.view
            site = found.get((weight.name, view))
            if site is None:
                site = found[weight.name, view] = Site(weight, view, [], [], *view.shape(weight.shape))
            site.readers.append(node)
            site.trail.extend(n for n in trace.trail if all(n is not t for t in site.trail))
            site.quantised = site.quantised or trace.quantised
            site.unfit.extend(_unfit(node, operand, flow))
            site.given = site.given or any(map(flow.is_given, (node.outputs[0], _after_bias(node)[0])))
            break
    sites = list(found.values())
    first: dict[str, Site] = {}
    for site in sites:
        site.apart = first.setdefault(site.name, site) is not site
    _mark_conflicts(sites, flow)
    return sites


def before_qdq(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor before a QuantizeLinear/DequantizeLinear pair, and before its Clip to a grid; or the tensor itself."""
    before = tensor
    for ops in ({"DequantizeLinear"}, QUANTISERS):
        if not before.inputs or before.inputs[0].op not in ops:
            return tensor
        before = before.inputs[0].inputs[0]
    return before.inputs[0].inputs[0] if before.inputs and is_grid_clip(before.inputs[0]) else before


def module_path(node: gs.Node) -> str:
    """The torch module path of a node: from dynamo's metadata, or from a legacy node name."""
    origin = getattr(node, "origin", None)
    for entry in origin.metadata_props if origin is not None else ():
        if entry.key == _NAME_SCOPES:
            try:
                scopes = [s for s in ast.literal_eval(entry.value)[:-1] if s]
            except (ValueError, SyntaxError, TypeError):
                continue  # somebody else's spelling: as good as none
            return str(scopes[-1]) if scopes else ""
    parts = [p for p in str(node.name).split("/") if p]
    if str(node.name).startswith("/") and len(parts) > 1:
        # "/blocks/blocks.0/attn/qkv/MatMul": a container repeats its own name before its child's index
        inner = parts[:-1]
        return ".".join(p for p, after in zip(inner, [*inner[1:], ""], strict=True) if not after.startswith(f"{p}."))
    return ""


def _after_bias(node: gs.Node) -> tuple[gs.Tensor, gs.Constant | None]:
    out = node.outputs[0]
    if node.op != "MatMul" and len(node.inputs) > 2:
        bias = node.inputs[2]
        return out, bias if isinstance(bias, gs.Constant) else None
    if (found := constant_added(node)) is not None:
        add, place = found
        if node.op == "MatMul" and len(add.inputs[place].shape) == 1:
            return add.outputs[0], add.inputs[place]
        if _is_protected(node.op, add.inputs[place].shape):
            return add.outputs[0], None
    return out, None


def _is_protected(op: str, shape: Sequence[int]) -> bool:
    """Whether what is added is a bias as `graph.fp16.biases` writes it: [1, N], or [C, 1, 1] with leading ones."""
    if op == "MatMul":
        return len(shape) == 2 and shape[0] == 1
    kept = [size for size in shape if size != 1]
    return op == "Conv" and len(kept) == 1 and list(shape).index(kept[0]) == len(shape) - 3


def _unfit(node: gs.Node, operand: int, flow: Dataflow) -> Iterator[str]:
    if operand == 0:
        yield "the constant is the left operand: it mixes positions, or channels that come first"
    elif not flow.data_inputs(node):
        yield "its input is constant, too: the product is folded when the engine is built"
    plain = {"transA": 0, "alpha": 1, "beta": 1}
    if node.op == "Gemm" and any(node.attrs.get(name, value) != value for name, value in plain.items()):
        yield "a Gemm with transA, alpha or beta is no Linear"
    if node.op == "ConvTranspose" and node.attrs.get("group", 1) != 1:
        yield "a ConvTranspose in groups: its output channels lie along two axes"


def _mark_conflicts(sites: list[Site], flow: Dataflow) -> None:
    by_weight: dict[str, list[Site]] = {}
    for site in sites:
        by_weight.setdefault(site.weight.name, []).append(site)
    for shared in by_weight.values():
        known = {id(node) for site in shared for node in (*site.readers, *site.trail)}
        others = sorted({node.op for node in _consumers(shared) if id(node) not in known})
        if len({site.k_axis for site in shared}) > 1:
            reason = "tied: its readers reduce along different axes, so one pattern cannot serve both"
            for site in shared:
                site.conflicts.append(reason)
        elif any(axis == site.k_axis for site in shared for axis, _ in site.view.cuts()):
            for site in shared:
                site.conflicts.append("its readers see different parts along the reduction axis")
        if shared[0].weight.name in flow.outputs:
            others.append("the graph's caller")
        if others:
            for site in shared:
                site.conflicts.append(f"also read by {', '.join(others)}: changing it would change that, too")


def _consumers(sites: list[Site]) -> Iterator[gs.Node]:
    yield from sites[0].weight.outputs
    for site in sites:
        for node in site.trail:
            for tensor in node.outputs:
                yield from tensor.outputs
