"""What a model costs: parameters, multiply-accumulates, bit operations and bytes, for each site and in all.

    macs            out * k * rows, rows = output positions of one image, summed over the readers
    bit_operations  macs * bits(weight) * bits(activation), halved where the weight is 2:4
    bytes           of the weight as a sparse engine stores it: kept elements * bits, and 2 bits of metadata for each
                    kept element (GPUSQ-ViT section 3.1: INT8 2:4 is 5 bits a weight, FP16 2:4 is 9)

Source: docs/method.md, "Metrics as the paper counts them". Limits: only sites count towards MACs, not attention
products; positions that shape inference does not know count as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from onnx import TensorProto

from gpusq_onnx.graph.model import Model, data_type_of
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure

_BITS = {"float": 32, "double": 64, "float16": 16, "bfloat16": 16, "int8": 8, "uint8": 8, "float8e4m3fn": 8}
_BITS |= {"float8e5m2": 8, "int4": 4, "uint4": 4, "float4e2m1": 4}
_FLOATS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
}
_METADATA_BITS = 2  # for each kept element of a group of four


@dataclass(frozen=True)
class SiteCost:
    """The cost of one site for one image, in the units of the module's text."""

    parameters: int
    macs: int
    bit_operations: float
    bytes: float


def site_cost(site: Site, structure: Structure, *, quantised: bool, sparse: bool) -> SiteCost:
    """The cost of a site: `quantised`, with its codes (INT8 where they are yet to be made), or in its stored type."""
    bits = _BITS.get((site.code_type or "int8") if quantised else site.dtype, 32)
    activation = 8 if quantised else bits
    parameters = site.out * site.k
    macs = sum(parameters * _rows(site, reader.outputs[0].name, structure) for reader in site.readers)
    stored = parameters / 2 * (bits + _METADATA_BITS) if sparse else parameters * bits
    return SiteCost(parameters, macs, macs * bits * activation / (2 if sparse else 1), stored / 8)


def total_cost(
    model: Model, structure: Structure, state: Callable[[Site], tuple[bool, bool]], sites: Iterable[Site] | None = None
) -> dict[str, float]:
    """Totals over the model; `state` tells (quantised, sparse) of a site.

    The parameters and bytes of initializers that are no site's weight (biases, norms, embeddings) count as stored.
    """
    chosen = list(structure.sites if sites is None else sites)
    costs = [site_cost(site, structure, quantised=q, sparse=s) for site in chosen for q, s in [state(site)]]
    stored = {site.part: cost for site, cost in zip(chosen, costs, strict=True)}.values()  # a tied weight is there once
    weights = {site.weight.name for site in chosen}
    others = [c for c in model.constants() if c.name not in weights and data_type_of(c) in _FLOATS]
    elements = [(math.prod(c.shape), _FLOATS[data_type_of(c)]) for c in others]
    return {
        "parameters": sum(c.parameters for c in stored) + sum(count for count, _ in elements),
        "macs": sum(c.macs for c in costs),
        "bit_operations": sum(c.bit_operations for c in costs),
        "bytes": sum(c.bytes for c in stored) + sum(count * bits // 8 for count, bits in elements),
    }


def _rows(site: Site, output: str, structure: Structure) -> int:
    """Output positions: the output's elements for one image, divided by its channels."""
    dims = [d for d in structure.shapes.get(output, ()) if isinstance(d, int)]
    return max(1, math.prod(dims) // max(1, site.out)) if dims else 1
