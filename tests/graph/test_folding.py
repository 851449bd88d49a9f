"""Folding: constants become initializers, shapes are believed only as far as they are known, and outputs stay."""

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from small_graphs import FLOAT, INT64, graph, model, node, normal, proto, run

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.rewrites.folding import fold, fold_all, foldable
from gpusq_onnx.graph.sites import find_sites

ASSETS = Path(__file__).parents[1] / "assets"
K, N = 8, 6
X = [("x", FLOAT, [2, 5, K])]
Y = [("y", FLOAT, None)]
W = normal(K, N, seed=1)


def folded(made, limit: int = 2**20):
    loaded = model(made)
    fold(loaded, [f.name for f in foldable(loaded, limit) if not f.refusal])
    invariants.check(loaded, "folding")
    return loaded


def shape_of_batch(batch):
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Concat", ["s", "three"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["y"]),
    ]
    return proto(nodes, [("x", FLOAT, [batch, 3])], [("y", FLOAT, [batch, 3])], {"three": np.array([3])})


def test_the_trap_of_shape_with_start_and_end():
    made = shape_of_batch(2)
    loaded = folded(made)
    assert [n.op for n in loaded.graph.nodes] == ["Reshape"]
    target = next(c for c in loaded.constants())
    np.testing.assert_array_equal(target.values, [2, 3])
    x = normal(2, 3)
    np.testing.assert_array_equal(run(loaded, {"x": x})["y"], x)


def test_a_dynamic_batch_stays_dynamic():
    made = shape_of_batch("n")
    assert foldable(model(made)) == []
    x = normal(7, 3)
    np.testing.assert_array_equal(run(folded(made), {"x": x})["y"], x)


@pytest.mark.parametrize(
    ("attributes", "known"),
    [
        ({"start": 1}, [4, 6]),
        ({"start": -1}, [6]),
        ({"start": 1, "end": -1}, [4]),
        ({"start": 3}, []),
        ({"end": 2}, None),
        ({}, None),
    ],
)
def test_known_dimensions_of_a_dynamic_tensor(attributes, known):
    nodes = [node("Shape", ["x"], ["s"], **attributes), node("Add", ["s", "k"], ["y"])]
    made = proto(nodes, [("x", FLOAT, ["n", 4, 6])], [("y", INT64, None)], {"k": np.array([1])})
    loaded = model(made)
    found = foldable(loaded)
    assert (found == []) == (known is None)
    x = normal(3, 4, 6)
    before = run(made, {"x": x})["y"]
    fold(loaded, [f.name for f in found])
    np.testing.assert_array_equal(run(loaded, {"x": x})["y"], before)


@pytest.mark.parametrize(
    ("op", "operands", "attributes", "known"),
    [
        ("Gather", [2], {}, 6),
        ("Gather", [[-1, 1]], {"axis": -1}, [6, 4]),
        ("Gather", [[0, 1]], {}, None),
        ("Slice", [[-1], [2**63 - 1], [0]], {}, [6]),
        ("Slice", [[1], [-1]], {}, [4]),
        ("Slice", [[-1], [-3], [0], [-1]], {}, [6, 4]),
        ("Slice", [[0], [2]], {}, None),
    ],
)
@pytest.mark.parametrize("start", [None, 1])
def test_known_dimensions_that_are_picked_of_a_shape(start, op, operands, attributes, known):
    """The Shape yields [n, 4, 6]: of all of x, or from its second axis on."""
    shape = ["n", 4, 6] if start is None else ["n", "n", 4, 6]
    constants = {f"c{place}": np.array(numbers) for place, numbers in enumerate(operands)} | {"k": np.array([1])}
    nodes = [
        node("Shape", ["x"], ["s"], **({} if start is None else {"start": start})),
        node(op, ["s", *(name for name in constants if name != "k")], ["p"], **attributes),
        node("Add", ["p", "k"], ["y"]),
    ]
    made = proto(nodes, [("x", FLOAT, shape)], [("y", INT64, None)], constants)
    loaded = model(made)
    found = foldable(loaded)
    x = normal(*([3] * (len(shape) - 2)), 4, 6)
    before = run(made, {"x": x})["y"]
    fold(loaded, [f.name for f in found])
    np.testing.assert_array_equal(run(loaded, {"x": x})["y"], before)
    assert [n.op for n in loaded.graph.nodes] == (["Shape", op, "Add"] if known is None else ["Add"])
    if known is not None:
        np.testing.assert_array_equal(before, np.asarray(known) + 1)


def test_a_shape_that_others_read_stays_when_a_known_dimension_is_picked():
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "last"], ["p"]),
        node("Gather", ["s", "first"], ["q"]),
        node("Slice", ["w", "zero", "p"], ["m"]),
        node("MatMul", ["x", "m"], ["h"]),
        node("Expand", ["one", "q"], ["e"]),
        node("Add", ["h", "e"], ["y"]),
    ]
    constants = {"w": normal(2 * K, N), "last": np.array([1]), "first": np.array([0]), "zero": np.array([0])}
    made = proto(nodes, [("x", FLOAT, ["n", K])], Y, constants | {"one": np.ones((1, 1), np.float32)})
    loaded = folded(made)
    assert [n.op for n in loaded.graph.nodes] == ["Shape", "Gather", "MatMul", "Expand", "Add"]
    (site,) = find_sites(loaded)
    assert (site.name, site.out, site.k) == ("m", N, K)


COMPUTED = {
    "Transpose": ([node("Transpose", ["w"], ["m"], perm=[1, 0])], {"w": W.T.copy()}),
    "Mul": ([node("Mul", ["w", "s"], ["m"])], {"w": W, "s": normal(N)}),
    "Einsum": ([node("Einsum", ["a", "b"], ["m"], equation="ik,kj->ij")], {"a": normal(K, 3), "b": normal(3, N)}),
    "Reshape": ([node("Reshape", ["w", "t"], ["m"])], {"w": W.reshape(-1).copy(), "t": np.array([K, N])}),
    "an MLP of a table": (
        [
            node("MatMul", ["table", "w1"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "w2"], ["m"]),
        ],
        {"table": normal(K, 2), "w1": normal(2, 16), "w2": normal(16, N)},
    ),
    "Shape of a constant": (
        [
            node("Shape", ["w"], ["t"], start=0, end=2),
            node("Expand", ["one", "t"], ["e"]),
            node("Mul", ["w", "e"], ["m"]),
        ],
        {"w": W, "one": np.ones(1, np.float32)},
    ),
    "half precision": (
        [node("Mul", ["w", "s"], ["h"]), node("Cast", ["h"], ["m"], to=FLOAT)],
        {"w": W.astype(np.float16), "s": normal(N, dtype=np.float16)},
    ),
}


@pytest.mark.parametrize("case", list(COMPUTED))
def test_computed_weights_become_sites(case: str):
    nodes, constants = COMPUTED[case]
    made = proto([*nodes, node("MatMul", ["x", "m"], ["y"])], X, Y, constants)
    loaded = folded(made)
    assert [n.op for n in loaded.graph.nodes] == ["MatMul"]
    (site,) = find_sites(loaded)
    assert (site.name, site.out, site.k, site.conflicts) == ("m", N, K, [])
    feed = {"x": normal(2, 5, K)}
    tolerance = 1e-2 if case == "half precision" else 1e-6  # onnxruntime multiplies halves in float
    np.testing.assert_allclose(run(loaded, feed)["y"], run(made, feed)["y"], atol=tolerance)
    assert foldable(loaded) == []
    assert [c.name for c in loaded.constants()] == ["m"]


def test_what_folding_shows_is_folded_too():
    """The last dimension after the Reshape is known only once its target is stored: no data goes through Abs."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "last"], ["d"]),
        node("Abs", ["d"], ["a"]),
        node("Concat", ["free", "a"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["r"]),
        node("Shape", ["r"], ["u"], start=1),
        node("Slice", ["w", "zero", "u"], ["m"]),
        node("MatMul", ["r", "m"], ["y"]),
    ]
    constants = {"w": normal(2 * K, N), "last": np.array([2]), "free": np.array([-1]), "zero": np.array([0])}
    loaded = model(proto(nodes, [("x", FLOAT, ["n", 5, K])], Y, constants))
    assert {found.name for found in fold_all(loaded, 2**20)} == {"t", "m"}
    assert [n.op for n in loaded.graph.nodes] == ["Reshape", "MatMul"]


def test_both_ends_of_a_chain():
    """The middle of the chain is read from outside, too."""
    nodes = [
        node("Mul", ["w", "w"], ["a"]),
        node("Transpose", ["a"], ["m"], perm=[1, 0]),
        node("MatMul", ["x", "m"], ["h"]),
        node("MatMul", ["h", "a"], ["y"]),
    ]
    made = proto(nodes, X, Y, {"w": normal(N, K)})
    loaded = model(made)
    assert [(f.name, f.nodes, f.shape) for f in foldable(loaded)] == [("a", 1, (N, K)), ("m", 2, (K, N))]
    fold(loaded, ["a", "m"])
    assert [n.op for n in loaded.graph.nodes] == ["MatMul", "MatMul"]
    feed = {"x": normal(2, 5, K)}
    np.testing.assert_array_equal(run(loaded, feed)["y"], run(made, feed)["y"])


def test_what_would_swell_the_file_is_left_with_the_reason():
    nodes = [node("Expand", ["c", "t"], ["e"]), node("Add", ["x", "e"], ["y"])]
    made = proto(nodes, X, Y, {"c": normal(1), "t": np.array([2, 5, K])})
    loaded = model(made)
    (left,) = foldable(loaded, limit=100)
    assert "larger" in left.refusal
    assert foldable(loaded, limit=400)[0].refusal == ""


def test_a_weight_that_others_go_on_reading_is_not_copied():
    nodes = [
        node("Transpose", ["w"], ["m"], perm=[1, 0]),
        node("MatMul", ["x", "m"], ["h"]),
        node("Gather", ["w", "i"], ["g"]),
        node("Add", ["h", "g"], ["y"]),
    ]
    made = proto(nodes, [("x", FLOAT, [5, K]), ("i", INT64, [1, 1])], Y, {"w": normal(K, K)})
    assert "larger" in foldable(model(made), limit=0)[0].refusal


KEPT = {
    "Q/DQ": (
        [node("QuantizeLinear", ["w", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["m"])],
        {"w": W, "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)},
    ),
    "random": ([node("RandomNormalLike", ["w"], ["m"], seed=1.0)], {"w": W}),
}


@pytest.mark.parametrize("case", list(KEPT))
def test_what_must_stay_stays(case: str):
    nodes, constants = KEPT[case]
    made = proto([*nodes, node("MatMul", ["x", "m"], ["y"])], X, Y, constants)
    assert foldable(model(made)) == []


def test_a_constant_output_stays_an_output():
    nodes = [node("Abs", ["w"], ["c"]), node("Relu", ["x"], ["y"])]
    made = proto(nodes, X, [*Y, ("c", FLOAT, [K, N])], {"w": W})
    loaded = folded(made)
    np.testing.assert_array_equal(run(loaded, {"x": normal(2, 5, K)})["c"], np.abs(W))


def test_a_constant_that_only_a_branch_reads():
    inner = graph([node("MatMul", ["x", "m"], ["a"])], [], [("a", FLOAT, None)], {})
    other = graph([node("MatMul", ["x", "v"], ["b"])], [], [("b", FLOAT, None)], {})
    other.initializer.append(numpy_helper.from_array(normal(K, N), "v"))
    nodes = [node("Mul", ["w", "w"], ["m"]), node("If", ["c"], ["y"], then_branch=inner, else_branch=other)]
    made = proto(nodes, [*X, ("c", 9, [])], Y, {"w": W})
    loaded = folded(made)
    assert [n.op for n in loaded.graph.nodes] == ["If"]
    feed = {"x": normal(2, 5, K), "c": np.array(True)}
    np.testing.assert_allclose(run(loaded, feed)["y"], run(made, feed)["y"], atol=1e-6)


def test_external_sources_are_read_in(tmp_path: Path):
    import onnx

    made = proto(
        [node("Mul", ["w", "s"], ["m"]), node("MatMul", ["x", "m"], ["h"]), node("MatMul", ["h", "v"], ["y"])],
        [("x", FLOAT, [5, 64])],
        Y,
        {"w": normal(64, 32), "s": normal(32), "v": normal(32, 64)},
    )
    path = tmp_path / "m.onnx"
    onnx.save_model(made, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    loaded = io.load(path)
    fold(loaded, [f.name for f in foldable(loaded)])
    feed = {"x": normal(5, 64)}
    np.testing.assert_allclose(run(loaded, feed)["y"], run(path, feed)["y"], rtol=1e-5, atol=1e-4)


def test_what_onnxruntime_cannot_compute_is_said():
    nodes = [node("Reshape", ["w", "t"], ["m"]), node("MatMul", ["x", "m"], ["y"])]
    made = proto(nodes, X, Y, {"w": normal(K * N * 300), "t": np.array([7, N])})
    loaded = model(made)
    with pytest.raises(UnsupportedModelError, match="cannot be computed"):
        fold(loaded, ["m"])


@pytest.mark.parametrize("asset", ["digits_vit.onnx", "digits_vit_legacy17.onnx"])
def test_the_embedded_model_computes_the_same(asset: str, tmp_path: Path):
    loaded = io.load(ASSETS / asset)
    sites = {site.path: site.read().copy() for site in find_sites(loaded)}
    fold(loaded, [f.name for f in foldable(loaded) if not f.refusal])
    io.save(loaded, tmp_path / "m.onnx")
    feed = {"pixel_values": normal(3, 3, 32, 32)}
    before, after = run(ASSETS / asset, feed), run(tmp_path / "m.onnx", feed)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-5)
    for site in find_sites(loaded):
        np.testing.assert_array_equal(site.read(), sites[site.path])
    assert [spec.shape for spec in loaded.inputs()] == [("batch", 3, 32, 32)]


def test_a_node_that_is_named_as_a_tensor():
    nodes = [
        node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        node("MatMul", ["x", "turned"], ["h"]),
        node("Slice", ["large", "starts", "ends"], ["part"]),
        node("MatMul", ["h", "part"], ["y"]),
    ]
    nodes[-1].name = "turned"
    stored = {"w": normal(N, K), "large": normal(2 * N, 3), "starts": np.array([N]), "ends": np.array([2 * N])}
    made = proto(nodes, X, Y, stored)
    after = folded(made)
    assert [(n.op, n.name) for n in after.graph.nodes][-1] == ("MatMul", "turned")
    assert [n.op for n in after.graph.nodes] == ["MatMul", "MatMul"]
    x = normal(2, 5, K, seed=3)
    np.testing.assert_allclose(run(after, {"x": x})["y"], run(made, {"x": x})["y"], rtol=1e-5, atol=1e-5)
