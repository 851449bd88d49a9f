"""The table of operators: what its rows say is what the operators do."""

import numpy as np
import onnx
import pytest
from small_graphs import FLOAT, INT64, Array, model, node, normal, proto, run

from gpusq_onnx.graph.id_ranges import table_rows
from gpusq_onnx.graph.operators import FP4_QUANTISER, MOVES, WEIGHTS, Is, operators
from gpusq_onnx.graph.qdq.placement import pairs

ANY = ~Is(0)
INTS = {"axis": np.array([0]), "shape": np.array([2, 12]), "four": np.array([4, 3, 2]), "twice": np.array([2, 1, 1])}
GIVEN = {
    "Reshape": (["x", "shape"], {}),
    "Squeeze": (["x"], {}),
    "Unsqueeze": (["x", "axis"], {}),
    "DepthToSpace": (["image"], {"blocksize": 2}),
    "SpaceToDepth": (["image"], {"blocksize": 2}),
    "Slice": (["x", "axis", "from"], {}),
    "Split": (["x"], {"num_outputs": 2}),
    "Expand": (["x", "four"], {}),
    "Tile": (["x", "twice"], {}),
    "Pad": (["x", "pads"], {}),
    "Concat": (["x", "y"], {"axis": 0}),
    "Gather": (["x", "axis"], {}),
    "GatherElements": (["x", "places"], {}),
    "GatherND": (["x", "axis"], {}),
    "ScatterElements": (["x", "places", "ones"], {}),
    "ScatterND": (["x", "axes", "y"], {}),
}


def test_every_row_is_an_operator() -> None:
    unknown = {name for name in operators(ANY) if not onnx.defs.has(name)}
    assert unknown == {FP4_QUANTISER, "SimplifiedLayerNormalization"}
    assert operators(Is.INDEXES | Is.JOINS | Is.WRITES) < MOVES
    assert set(WEIGHTS) < operators(Is.PRODUCT)


@pytest.mark.parametrize("op", sorted(MOVES))
def test_what_moves_gives_numbers_that_it_reads(op: str) -> None:
    inputs, attributes = GIVEN.get(op, (["x"], {}))
    given: dict[str, Array] = {"x": normal(4, 3, 2), "y": normal(4, 3, 2, seed=1), "image": normal(1, 4, 2, 2)}
    more = {"from": np.array([3]), "pads": np.array([1, 0, 0, 0, 0, 1]), "axes": np.array([[0], [1], [2], [3]])}
    more |= {"places": np.array([[[1]]]), "ones": normal(1, 1, 1, seed=2)}
    outputs = ["a", "b"] if op == "Split" else ["a"]
    read = {name: values for name, values in {**given, **INTS, **more}.items() if name in inputs}
    kinds = {name: FLOAT if values.dtype == np.float32 else INT64 for name, values in read.items()}
    declared = [(name, kinds[name], list(values.shape)) for name, values in read.items()]
    made = proto([node(op, inputs, outputs, **attributes)], declared, [(name, FLOAT, None) for name in outputs])
    known = np.concatenate([values.reshape(-1) for values in read.values() if values.dtype == np.float32])
    for found in run(made, read).values():
        assert set(found.reshape(-1).tolist()) <= {0.0, *known.tolist()}
        assert not np.array_equal(found, np.zeros_like(found))


def test_ids_are_followed_through_all_that_moves_and_not_through_a_choice() -> None:
    nodes = [
        node("Split", ["ids"], ["first", "rest"], axis=1, num_outputs=2),
        node("Gather", ["words", "first"], ["a"]),
        node("Gather", ["buckets", "rest"], ["bucket"], axis=0),
        node("Gather", ["biases", "bucket"], ["b"]),
    ]
    constants = {"words": normal(50, 4), "buckets": np.arange(60) % 3, "biases": normal(3, 2)}
    made = model(proto(nodes, [("ids", INT64, [2, 8])], [("a", FLOAT, None), ("b", FLOAT, None)], constants))
    assert table_rows(made) == {"ids": 50}, "three rows of biases bound the buckets, not the ids"


@pytest.mark.parametrize(("op", "legal"), [("Tile", True), ("Concat", True), ("Abs", False)])
def test_codes_go_through_what_only_moves_them(op: str, legal: bool) -> None:
    inputs = {"Tile": ["q", "twice"], "Concat": ["q", "q"]}.get(op, ["q"])
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node(op, inputs, ["moved"], **({"axis": 0} if op == "Concat" else {})),
        node("DequantizeLinear", ["moved", "s", "z"], ["y"]),
    ]
    constants = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "twice": np.array([2, 1])}
    made = model(proto(nodes, [("x", FLOAT, [2, 3])], [("y", FLOAT, None)], constants))
    assert (not list(pairs(made))) == legal
