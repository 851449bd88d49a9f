"""Which integers a model may be fed: an input that chooses rows of a table (token ids) must stay below their number.

Followed through operators that only move or cast; with several tables, the smallest counts. Limits: tables that are
constant, chosen from by Gather along one axis; integers that are something else (masks, sizes) have no bound here.
"""

from __future__ import annotations

from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import Is, operators

# Not through a choice: what it gives are the table's numbers, if the input was the choice.
_FOLLOWED = operators(Is.MOVES | Is.RETYPES) - operators(Is.INDEXES | Is.WRITES)


def table_rows(model: Model) -> dict[str, int]:
    """By the name of an integer input, the rows of the table that it chooses from."""
    flow = Dataflow(model)
    found: dict[str, int] = {}
    for tensor in model.graph.inputs:
        region = flow.reach([tensor], _FOLLOWED)
        rows = [
            int(table.shape[node.attrs.get("axis", 0)])
            for inside in region.values()
            for node in inside.outputs
            if node.op == "Gather" and node.inputs[1] is inside
            for table in node.inputs[:1]
            if not flow.is_data(table) and table.shape is not None
            if isinstance(table.shape[node.attrs.get("axis", 0)], int)
        ]
        if rows:
            found[tensor.name] = min(rows)
    return found
