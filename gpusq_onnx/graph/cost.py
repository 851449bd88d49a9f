"""What a model costs, for each site and in all, each measure under a name of its own (`MEASURES`); defined here alone.

    parameters          elements
    nonzero_parameters  those that the weight's pattern keeps: half for 2:4
    stored_parameters   packed bits / 32: the paper's Params, in FP32 equivalents
    packed_bytes        kept elements * bits, and the pattern's metadata bits, / 8: INT8 2:4 is 5 bits a weight, FP16
                        2:4 is 9; what a sparse engine holds, and what `pack` writes but for the graph itself
    dense_macs          out * k * rows, rows = positions of one image in the output (of a ConvTranspose: in the
                        input), summed over the readers; a fixed batch counts as so many images
    sparse_macs         dense_macs * density of the weight's pattern
    bit_operations      sparse_macs * bits(weight) * bits(activation); 2 / 32^2 of it are the paper's FLOPs
    file_bytes          of the model's files, in all only (`pipeline.summary.Cost.in_files`)

Source: GPUSQ-ViT section 3.1; docs/method.md, "Metrics as the paper counts them". Limits: only sites count towards
MACs, not attention products; positions that shape inference does not know count as one; zero points, which are all
zero, do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.attention import Attention
from gpusq_onnx.graph.model import Model, Node, type_name
from gpusq_onnx.graph.qdq.codes import float_format, quantised
from gpusq_onnx.graph.qdq.quantize_nodes import is_zero_point
from gpusq_onnx.graph.qdq.weight_only import NBits, find_nbits
from gpusq_onnx.graph.sites import Site, before_qdq
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.quant.formats import FORMATS, Format, natural
from gpusq_onnx.quant.schemes import Quantised
from gpusq_onnx.sparsity.patterns import Pattern

MEASURES: Mapping[str, str] = MappingProxyType(
    {
        "file_bytes": "file bytes",
        "packed_bytes": "packed bytes",
        "stored_parameters": "stored parameters (FP32 equivalents)",
        "parameters": "parameters",
        "nonzero_parameters": "non-zero parameters",
        "dense_macs": "dense MACs",
        "sparse_macs": "sparse MACs",
        "bit_operations": "bit operations",
    }
)
"""The names of the measures, as people read them."""


@dataclass(frozen=True)
class CostForm:
    """What a site is computed in.

    Attributes:
        weight, input: the formats of both factors.
        pattern: of the weight; None: dense.
        stored: the format of the weight in the file, where that is another: floats that others read as they are.
    """

    weight: Format
    input: Format
    pattern: Pattern | None = None
    stored: Format | None = None


@dataclass(frozen=True)
class SiteCost:
    """The cost of one site for one image, in the units of the module's text."""

    parameters: int
    nonzero_parameters: float
    stored_parameters: float
    packed_bytes: float
    dense_macs: int
    sparse_macs: float
    bit_operations: float


@dataclass(frozen=True)
class Constants:
    """So many numbers, of so many bits each."""

    number: int
    bits: int


def form_of(site: Site, pattern: Pattern | None, planned: Quantised | None = None) -> CostForm:
    """The form of a site as it is stored, or as it is `planned`."""
    found, single = planned or quantised(site), float_format(site)
    own = natural(site.dtype)
    weight = found.weight or own or single
    kept = own if site.conflicts and own is not None and own.stored else None
    return CostForm(weight, (found.input if found.weight else None) or single, pattern, kept)


def site_cost(site: Site, structure: Structure, form: CostForm) -> SiteCost:
    """The cost of a site in a form."""
    parameters = site.out * site.k
    macs = sum(parameters * _rows(site, reader, structure) for reader in site.readers)
    return _cost(parameters, macs, form)


def _cost(parameters: int, macs: int, form: CostForm) -> SiteCost:
    density, places = (1.0, 0.0) if form.pattern is None else (form.pattern.density, form.pattern.metadata_bits)
    stored = parameters * (density * (form.stored or form.weight).bits + places)
    bit_operations = macs * density * form.weight.bits * form.input.bits
    return SiteCost(parameters, parameters * density, stored / 32, stored / 8, macs, macs * density, bit_operations)


def attention_macs(attention: Attention, structure: Structure) -> int:
    """Multiply-accumulates of both attention products for one image; 0 where their shapes are not known.

    They are no part of `total_cost`, which counts as the paper does.
    """
    if attention.fused:
        return 0
    return sum(_product(node, structure) for node in (attention.scores, attention.context))


def _product(node: Node, structure: Structure) -> int:
    output, left = (structure.shapes.get(tensor.name, ()) for tensor in (node.outputs[0], node.inputs[0]))
    if not output or not left or not isinstance(left[-1], int):
        return 0
    return math.prod(d for d in output if isinstance(d, int)) * left[-1] // structure.images


def total_cost(
    model: Model, structure: Structure, form: Callable[[Site], CostForm], planned: Iterable[Constants] = ()
) -> dict[str, float]:
    """Totals over the model.

    The parameters of initializers that are no site's weight (biases, norms, embeddings, scales) count as stored.

    Args:
        form: tells that of a site.
        planned: initializers that are not there yet.
    """
    costs = [site_cost(site, structure, form(site)) for site in structure.sites]
    named = [site.part for site in structure.sites]
    for found in find_nbits(model):
        costs.append(_nbits_cost(found, structure))
        named.append(found.weight)
    stored = dict(zip(named, costs, strict=True)).values()  # a tied weight is there once
    weights = {site.weight.name for site in structure.sites}
    rest = [c for c in (*model.constants(), *model.inner_constants()) if c.name not in weights]
    others = [(c, natural(type_name(c))) for c in rest]
    elements = [Constants(math.prod(c.shape), fmt.bits) for c, fmt in others if fmt is not None and _is_number(c, fmt)]
    elements += planned
    other, other_bytes = sum(one.number for one in elements), sum(one.number * one.bits // 8 for one in elements)
    packed = sum(c.packed_bytes for c in stored) + other_bytes
    return {
        "parameters": sum(c.parameters for c in stored) + other,
        "nonzero_parameters": sum(c.nonzero_parameters for c in stored) + other,
        "stored_parameters": packed / 4,
        "packed_bytes": packed,
        "dense_macs": sum(c.dense_macs for c in costs),
        "sparse_macs": sum(c.sparse_macs for c in costs),
        "bit_operations": sum(c.bit_operations for c in costs),
    }


def _is_number(constant: gs.Constant, fmt: Format) -> bool:
    """Whether it is stored as the values themselves, or holds the FP8 scales of blocks."""
    return fmt.stored or (bool(fmt.grid) and not is_zero_point(constant))


def _nbits_cost(found: NBits, structure: Structure) -> SiteCost:
    """That of a MatMulNBits: codes beside data of the scales' float type."""
    data = natural(type_name(found.node.inputs[2])) or FORMATS["fp32"]
    parameters = found.out * found.k
    macs = parameters * _positions(found.node.outputs[0].name, found.out, structure)
    codes = natural(f"uint{found.bits}") or data
    return _cost(parameters, macs, CostForm(codes, data))


def open_positions(structure: Structure) -> int:
    """How many sites have output positions that are not known, batch aside, and count as one."""
    outputs = ([structure.shapes.get(reader.outputs[0].name) for reader in site.readers] for site in structure.sites)
    return sum(any(not shape or not all(isinstance(d, int) for d in shape[1:]) for shape in found) for found in outputs)


def _rows(site: Site, reader: Node, structure: Structure) -> int:
    """How often a reader multiplies with the whole weight for one image."""
    if reader.op == "ConvTranspose":
        return _positions(before_qdq(reader.inputs[0]).name, site.channels, structure)
    return _positions(reader.outputs[0].name, site.out, structure)


def _positions(tensor: str, channels: int, structure: Structure) -> int:
    """A tensor's elements for one image, divided by its channels."""
    dims = [d for d in structure.shapes.get(tensor, ()) if isinstance(d, int)]
    return max(1, math.prod(dims) // max(1, channels) // structure.images) if dims else 1
