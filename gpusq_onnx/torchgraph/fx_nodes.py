"""torch.fx nodes as patterns see them: products, sums, factors, and who is the only reader of what.

`FxNodes` shows a converted network to the walk of `graph.attention`; `peepholes` and `lowering.attention` start it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gpusq_onnx.graph.attention import Factor, Kind

Node = Any  # an fx.Node, whose arguments fx types so widely that each access would want a check of its own


class FxNodes:
    """See `graph.attention.Nodes`; operands are nodes or numbers.

    Args:
        rounds: whether a node is a Q/DQ pair that a pattern may hold.
    """

    def __init__(self, rounds: Callable[[Node], bool] = lambda node: False) -> None:
        self._rounds = rounds

    def kind(self, node: Node) -> Kind:
        """A product or sum has two tensors; a Softmax is over the last axis."""
        if calls(node, torch.softmax):
            return "softmax" if node.args[1] == -1 else ""
        both = len(node.args) > 1 and all(isinstance(operand, fx.Node) for operand in node.args[:2])
        if both and calls(node, torch.matmul):
            return "product"
        if both and calls(node, operator.add):
            return "sum"
        return "quantiser" if self._rounds(node) else ""

    def factor(self, node: Node) -> Factor | None:
        """A multiplication with a Python number, or a division by one."""
        if node.target not in (operator.mul, operator.truediv):
            return None
        left, right = node.args
        if isinstance(right, (int, float)):
            return Factor(node, left, right if node.target is operator.mul else 1 / right)
        if isinstance(left, (int, float)) and node.target is operator.mul:
            return Factor(node, right, left)
        return None

    def reader(self, node: Node) -> Node | None:
        """The only reader."""
        return only_reader(node)

    def operands(self, node: Node) -> tuple[Any, Any]:
        """The first two arguments."""
        return node.args[0], node.args[1]

    def made_by(self, operand: Any) -> Node | None:
        """The operand itself, where it is a node."""
        return operand if isinstance(operand, fx.Node) else None


def scaled(operand: Any) -> tuple[Any, float]:
    """What numbers multiply or divide, and the product of these; inner nodes have one reader."""
    value, nodes = 1.0, FxNodes()
    while isinstance(operand, fx.Node) and len(operand.users) == 1 and (factor := nodes.factor(operand)) is not None:
        value, operand = value * factor.value, factor.data
    return operand, value


def calls(node: Any, function: Callable[..., Any]) -> bool:
    """Whether something is a node that calls a function."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is function


def only_reader(node: Node) -> Node | None:
    """The one node that reads `node`; None: several do, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None
