"""What a model costs: parameters, multiply-accumulates, bit operations and bytes, for each site and in all.

    macs            out * k * rows, rows = output positions of one image, summed over the readers
    bit_operations  macs * bits(weight) * bits(activation) * density of the weight's pattern: half for 2:4
    bytes           of the weight as a sparse engine stores it: kept elements * bits, and the pattern's metadata bits
                    (GPUSQ-ViT section 3.1: INT8 2:4 is 5 bits a weight, FP16 2:4 is 9)

Source: docs/method.md, "Metrics as the paper counts them". Limits: only sites count towards MACs, not attention
products; positions that shape inference does not know count as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpusq_onnx.graph.codes import float_format, quantised
from gpusq_onnx.graph.model import Model, type_name
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.graph.weight_only import NBits, find_nbits
from gpusq_onnx.quant.formats import FORMATS, Format, natural
from gpusq_onnx.quant.schemes import Quantised
from gpusq_onnx.sparsity.patterns import Pattern


@dataclass(frozen=True)
class Form:
    """What a site is computed in.

    Attributes:
        weight, input: the formats of both factors.
        pattern: of the weight; None: dense.
    """

    weight: Format
    input: Format
    pattern: Pattern | None = None


@dataclass(frozen=True)
class SiteCost:
    """The cost of one site for one image, in the units of the module's text."""

    parameters: int
    macs: int
    bit_operations: float
    bytes: float


def form_of(site: Site, pattern: Pattern | None, planned: Quantised | None = None) -> Form:
    """The form of a site as it is stored, or as it is `planned`."""
    found, single = planned or quantised(site), float_format(site)
    weight = found.weight or natural(site.dtype) or single
    return Form(weight, (found.input if found.weight else None) or single, pattern)


def site_cost(site: Site, structure: Structure, form: Form) -> SiteCost:
    """The cost of a site in a form."""
    parameters = site.out * site.k
    macs = sum(parameters * _rows(site.out, reader.outputs[0].name, structure) for reader in site.readers)
    density, places = (1.0, 0.0) if form.pattern is None else (form.pattern.density, form.pattern.metadata_bits)
    stored = parameters * (density * form.weight.bits + places)
    return SiteCost(parameters, macs, macs * form.weight.bits * form.input.bits * density, stored / 8)


def total_cost(
    model: Model, structure: Structure, form: Callable[[Site], Form], sites: Iterable[Site] | None = None
) -> dict[str, float]:
    """Totals over the model; `form` tells that of a site.

    The parameters and bytes of initializers that are no site's weight (biases, norms, embeddings) count as stored.
    """
    chosen = list(structure.sites if sites is None else sites)
    costs = [site_cost(site, structure, form(site)) for site in chosen]
    named = [site.part for site in chosen]
    for found in find_nbits(model) if sites is None else ():
        costs.append(_nbits_cost(found, structure))
        named.append(found.weight)
    stored = dict(zip(named, costs, strict=True)).values()  # a tied weight is there once
    weights = {site.weight.name for site in chosen}
    others = [(c, natural(type_name(c))) for c in model.constants() if c.name not in weights]
    elements = [(math.prod(c.shape), fmt.bits) for c, fmt in others if fmt is not None and fmt.stored]
    return {
        "parameters": sum(c.parameters for c in stored) + sum(count for count, _ in elements),
        "macs": sum(c.macs for c in costs),
        "bit_operations": sum(c.bit_operations for c in costs),
        "bytes": sum(c.bytes for c in stored) + sum(count * bits // 8 for count, bits in elements),
    }


def _nbits_cost(found: NBits, structure: Structure) -> SiteCost:
    """That of a MatMulNBits: codes beside data of the scales' float type."""
    data = natural(type_name(found.node.inputs[2])) or FORMATS["fp32"]
    parameters = found.out * found.k
    macs = parameters * _rows(found.out, found.node.outputs[0].name, structure)
    return SiteCost(parameters, macs, macs * found.bits * data.bits, parameters * found.bits / 8)


def _rows(out: int, output: str, structure: Structure) -> int:
    """Output positions: the output's elements for one image, divided by its channels."""
    dims = [d for d in structure.shapes.get(output, ()) if isinstance(d, int)]
    return max(1, math.prod(dims) // max(1, out)) if dims else 1
