"""The integers that a graph may be fed, read off the tables that it holds."""

import numpy as np
from small_graphs import FLOAT, INT64, model, node, normal, proto

from gpusq_onnx.graph.id_ranges import table_rows


def test_ids_stay_below_the_smallest_table_that_they_choose_from() -> None:
    nodes = [
        node("Cast", ["ids"], ["narrow"], to=6),
        node("Gather", ["words", "narrow"], ["a"]),
        node("Unsqueeze", ["ids", "zero"], ["more"]),
        node("Gather", ["columns", "more"], ["b"], axis=1),
        node("Cast", ["mask"], ["m"], to=1),
    ]
    tables = {"words": normal(50, 4), "columns": normal(4, 7), "zero": np.array([0])}
    outputs = [(name, FLOAT, None) for name in "abm"]
    made = model(proto(nodes, [("ids", INT64, [2, 9]), ("mask", INT64, [2, 9])], outputs, tables))
    assert table_rows(made) == {"ids": 7}
