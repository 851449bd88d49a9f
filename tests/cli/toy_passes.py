"""Passes that go wrong in one way each, as a plug-in would bring them in."""

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.base import Context, Pass, PassOptions, PlanContext, PlanRow


class ToyOptions(PassOptions):
    """One option, so that the reproducer has something to keep."""

    strength: int = Field(1, ge=1, description="of nothing")


class Toy(Pass[ToyOptions]):
    """Plans to touch every weight."""

    summary, source = "goes wrong", "a test"
    Options = ToyOptions

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        return [
            PlanRow(s.name, s.path, s.role, s.op, (s.out, s.k), "prune", "a test") for s in structure.sites if s.block
        ]


class Raises(Toy):
    """Case 1: a bug in the pass."""

    name = "raises"

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        raise IndexError("list index out of range")


class Disconnects(Toy):
    """Case 2: the graph is broken afterwards: a node reads a tensor that nobody makes."""

    name = "disconnects"

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        model.graph.nodes.pop(len(model.graph.nodes) // 2).outputs.clear()


class Densifies(Toy):
    """Case 3: a fact that an earlier pass established no longer holds."""

    name = "densifies"

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        for site in structure.sites:
            site.write(np.ones_like(site.read()))


PASSES: tuple[type[Pass[Any]], ...] = (Raises, Disconnects, Densifies)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a distribution with these entry points were installed."""
    points = [EntryPoint(p.name, f"{__name__}:{p.__name__}", table.ENTRY_POINT_GROUP) for p in PASSES]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(table, "entry_points", lambda group: points if group == table.ENTRY_POINT_GROUP else [])
