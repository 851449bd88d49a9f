"""What rows of a plan hold beside their decision, one dataclass a kind of row: `apply`, estimates and `tune` read them.

    Pruned, Following        a weight gets a sparse pattern, or keeps the one that it has
    WeightPair               a weight is quantised; NBitsPair: in a node that onnxruntime alone has
    TensorPair               the input or output of Linears and Convs gets a Q/DQ pair
    OperandPair              an operand of attention's products does
    LearnedPair              such an operand that is constant does

A report holds their fields under `detail`. Passes whose details nobody else reads define their own beside the pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from gpusq_onnx.graph.model import Node, Tensor
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.base import Detail, PlanRow
from gpusq_onnx.quant.formats import FORMATS, Format
from gpusq_onnx.sparsity.patterns import Pattern, parse_pattern

When = Literal["never", "outliers", "always"]
Operand = Literal["Q", "K", "softmax", "V"]
DetailT = TypeVar("DetailT", bound=Detail)


def rows_with(plan: Iterable[PlanRow], kind: type[DetailT]) -> list[tuple[PlanRow, DetailT]]:
    """The rows that have a detail of a kind, each with it."""
    return [(row, row.detail) for row in plan if isinstance(row.detail, kind)]


@dataclass(frozen=True)
class Following(Detail):
    """A weight that follows a pattern: its name, as in "2:4"."""

    pattern: str

    @property
    def shape(self) -> Pattern:
        """The pattern."""
        return parse_pattern(self.pattern)


@dataclass(frozen=True)
class Pruned(Following):
    """A weight that will follow a pattern, and how its zeros are chosen."""

    method: Literal["magnitude", "sparsegpt"]


@dataclass(frozen=True, kw_only=True)
class QdqPair(Detail):
    """A tensor that goes through Q/DQ: the name of the format."""

    format: str

    @property
    def numbers(self) -> Format:
        """The format."""
        return FORMATS[self.format]


@dataclass(frozen=True, kw_only=True)
class WeightPair(QdqPair):
    """A weight.

    Attributes:
        block: how many weights along the reduction share a scale; 0: one scale an output channel.
        rounding: to the nearest, or by the output error.
    """

    block: int
    rounding: Literal["nearest", "gptq"]


class NBitsPair(WeightPair):
    """A weight that goes into a MatMulNBits."""


@dataclass(frozen=True, kw_only=True)
class TensorPair(QdqPair):
    """The input or output of sites.

    Attributes:
        side: which.
        sites: the names of their weights.
        equalise: when its channels are scaled to one size.
        centred: whether its middle is taken out where its values are one-sided.
    """

    side: Literal["input", "output"]
    sites: tuple[str, ...]
    equalise: When
    centred: bool = False


@dataclass(frozen=True, kw_only=True)
class OperandPair(QdqPair):
    """An operand of one of attention's products.

    Attributes:
        attention: the number of the core, in graph order.
        operand: which.
        fixed: its scale makes 1 the largest code.
    """

    side: Literal["attention"] = "attention"
    attention: int
    operand: Operand
    fixed: bool


@dataclass(frozen=True, kw_only=True)
class LearnedPair(QdqPair):
    """Learned queries: the number of their attention core."""

    attention: int


@dataclass(frozen=True, kw_only=True)
class ScaledOperandPair(OperandPair):
    """Q, before which the scores' factor moves: that factor."""

    scale: float


def readers_of(pair: QdqPair, tensor: Tensor, structure: Structure) -> list[Node]:
    """Who reads a planned tensor through its pair."""
    if isinstance(pair, OperandPair):
        attention = structure.attentions[pair.attention]
        return [attention.scores if pair.operand in ("Q", "K") else attention.context]
    if isinstance(pair, TensorPair) and pair.side == "input":
        return [reader for site in structure.sites if site.name in pair.sites for reader in site.readers]
    return list(tensor.outputs)
