"""The columns of Tables 1, 3 and 4 from a row's record: how the paper counts, and what our count has besides.

A record is what `tools.paper.work` writes: totals of `gpusq_onnx.graph.cost`, which is the only place that counts a
model. The paper's two columns are bit-weighted:

    Params (M)   stored bits / 32
    FLOPs (G)    2 MACs, halved where weights are 2:4, times (bits of weights x bits of data) / 32²

Two readings of each are shown. *All compressed* applies the format to every parameter and to every product with a
weight, which is what ratios of 6.4 and 32 mean. *As stored* is the written model: what stays in float counts in full.
The difference between them is a number here, and its parts have names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.paper.rows import Format, Row

Record = Mapping[str, Any]

NEAR = 0.02
"""How far a count may be from a published one without a reason."""


def paper_params(parameters: float, form: Format) -> float:
    """Params, all compressed: elements x bits of a dense element with its metadata / 32 (5 or 2.5 of 32)."""
    return parameters * form.bits / 32


def paper_flops(macs: float, form: Format) -> float:
    """FLOPs, all compressed: 2 MACs / 32 for INT8 2:4 (2 x (32/8)²), / 64 for 4-bit weights x 8-bit data."""
    return 2 * macs * form.work


def stored_flops(bit_operations: float) -> float:
    """FLOPs, as stored: bit operations x 2 / 32²."""
    return 2 * bit_operations / 32**2


def dense_macs(record: Record) -> float:
    """Multiply-accumulates of one image: Linears, convolutions and both attention products.

    Published counts of transformers hold the attention products; `graph.cost` keeps them apart.
    """
    return float(record["dense"]["dense_macs"] + record["attention_macs"])


def away(found: float, published: float) -> float:
    """The relative distance of a count from a published one."""
    return found / published - 1


def params_difference(row: Row, record: Record) -> str:
    """Why our dense Params are not the published ones: "" within `NEAR`, else the reason with its size."""
    if row.params is None:
        return "nothing is published"
    found = record["dense"]["parameters"]
    apart = away(found / 1e6, row.params)
    if abs(apart) <= NEAR:
        return ""
    tables = record["tables"]
    without = away((found - tables) / 1e6, row.params)
    if abs(without) <= NEAR:
        return f"{tables / 1e6:.2f} M elements are attention masks and position tables that the exporter wrote out"
    return row.differs or "not explained"


def flops_difference(row: Row, record: Record) -> str:
    """Why our dense MACs are not the published ones: "" within `NEAR`, else the reason."""
    if row.macs is None:
        return "nothing is published"
    return "" if abs(away(dense_macs(record) / 1e9, row.macs)) <= NEAR else row.differs or "not explained"


def ratios(dense: Record, found: Record) -> dict[str, float]:
    """How many times smaller a compressed row is than its dense one, as stored; and its two parts that stay large.

    Keys: params, flops: as stored; weights, products: of the weights and products that have the format alone;
    float_params, float_flops: what others are of the compressed total, 0 to 1.
    """
    before, after, formed = dense["dense"], found["after"], found["formed"]
    return {
        "params": before["parameters"] / after["stored_parameters"],
        "flops": before["dense_macs"] / (after["bit_operations"] / 32**2),
        "weights": formed["parameters"] / formed["stored_parameters"] if formed["parameters"] else 1.0,
        "products": formed["dense_macs"] / (formed["bit_operations"] / 32**2) if formed["dense_macs"] else 1.0,
        "float_params": 1 - formed["stored_parameters"] / after["stored_parameters"],
        "float_flops": 1 - formed["bit_operations"] / after["bit_operations"],
    }
