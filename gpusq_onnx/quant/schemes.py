"""Which formats go together: what a quantising pass does to a Linear, as rows of one table.

    name      weights                                    inputs                  attention operands
    int8      INT8, one scale a channel                  INT8                    INT8
    w4a8      4-bit values in INT8, a scale a channel    INT8                    INT8
    w4a4      4-bit values in INT8, a scale a channel    4-bit values in INT8    INT8
    fp8       FP8 (E4M3), one scale a channel            FP8                     FP8
    nvfp4     FP4 (E2M1), FP8 scales a block of 16       FP4, at run time        float

A quantising pass is a scheme plus options. compressed-tensors' `quant_scheme.py` is the model: a scheme is a few fields
in a named table, and code asks the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpusq_onnx.quant.formats import FP4, FP8, INT4_IN_INT8, INT8, Format


@dataclass(frozen=True)
class Quantised:
    """The formats of one Linear's tensors; None where a tensor is float."""

    weight: Format | None = None
    input: Format | None = None
    output: Format | None = None

    @property
    def sides(self) -> tuple[str, ...]:
        """Those of "weight", "input" and "output" that have a format."""
        return tuple(side for side in ("weight", "input", "output") if getattr(self, side) is not None)


@dataclass(frozen=True)
class Scheme:
    """The formats that a quantising pass gives.

    Attributes:
        name: as reports spell it.
        weight: of weights.
        input: of the inputs of Linears and Convs; None: weight-only.
        attention: of the operands of the attention products; None: they stay float.
        block: elements along the reduction that share a weight scale; 0: one scale an output channel.
    """

    name: str
    weight: Format
    input: Format | None
    attention: Format | None = None
    block: int = 0

    @property
    def form(self) -> str:
        """Weights x data by name: "int8 x int8", "int4 in blocks x float"."""
        return form_name(self.weight.name, "float" if self.input is None else self.input.name, blocks=self.block > 0)


def form_name(weight: str, data: str, *, blocks: bool = False) -> str:
    """How a form of Linears is called: the formats of weights and data, by name."""
    return f"{weight}{' in blocks' if blocks else ''} x {data}"


_SCHEMES = {
    row.name: row
    for row in (
        Scheme("int8", INT8, INT8, INT8),
        Scheme("w4a8", INT4_IN_INT8, INT8, INT8),
        Scheme("w4a4", INT4_IN_INT8, INT4_IN_INT8, INT8),
        Scheme("fp8", FP8, FP8, FP8),
        Scheme("nvfp4", FP4, FP4, block=16),
    )
}
SCHEMES: Mapping[str, Scheme] = MappingProxyType(_SCHEMES)
