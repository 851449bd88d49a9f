"""Every form in which exporters hide a weight: found, read as w[out, k], written back, proven by onnxruntime."""

import weakref

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import FLOAT, Array, model, node, normal, proto, rng, run

from gpusq_onnx.graph.sites import Site, find_sites, module_path
from gpusq_onnx.sparsity.patterns import TWO_FOUR, patterns_of

K, N = 8, 12
W = normal(K, N, seed=1)  # as MatMul reads it; w[out, k] is its transpose
X: list[tuple[str, int, list[int | str | None]]] = [("x", FLOAT, [2, 5, K])]
Y: list[tuple[str, int, list[int | str | None]]] = [("y", FLOAT, [2, 5, None])]
SCALE = np.full(N, 0.05, np.float32)
ZERO = np.zeros(N, np.int8)


def matmul_of(*before, weight="w", **constants):
    """MatMul(x, m), where `before` makes m of the constants."""
    return proto([*before, node("MatMul", ["x", "m" if before else weight], ["y"])], X, Y, constants)


def index(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


STORED = {
    "MatMul": matmul_of(w=W),
    "MatMul, rank 3": matmul_of(w=W[None]),
    "MatMul after Transpose": matmul_of(node("Transpose", ["w"], ["m"], perm=[1, 0]), w=W.T.copy()),
    "MatMul after Transpose without perm": matmul_of(node("Transpose", ["w"], ["m"]), w=W.T.copy()),
    "MatMul after Identity": matmul_of(node("Identity", ["w"], ["m"]), w=W),
    "MatMul after Identity and Transpose": matmul_of(
        node("Identity", ["w"], ["i"]), node("Transpose", ["i"], ["m"], perm=[1, 0]), w=W.T.copy()
    ),
    "MatMul after Squeeze": matmul_of(node("Squeeze", ["w", "axes"], ["m"]), w=W[:, None], axes=index(-2)),
    "MatMul after Squeeze of all": matmul_of(node("Squeeze", ["w"], ["m"]), w=W[None, :, None]),
    "MatMul after Cast": matmul_of(node("Cast", ["w"], ["m"], to=FLOAT), w=W.astype(np.float16)),
    "MatMul of one part of a Split": matmul_of(
        node("Split", ["w"], ["a", "m", "b"], axis=1, num_outputs=3), w=np.concatenate([W + 1, W, W + 2], axis=1)
    ),
    "MatMul of an uneven Split": matmul_of(
        node("Split", ["w", "sizes"], ["a", "m"], axis=-1),
        w=np.concatenate([W[:, :4], W], axis=1),
        sizes=index(4, N),
    ),
    "MatMul after Transpose of a Split": matmul_of(
        node("Split", ["w"], ["a", "s"], axis=0, num_outputs=2),
        node("Transpose", ["s"], ["m"], perm=[1, 0]),
        w=np.concatenate([W.T + 1, W.T]),
    ),
    "MatMul of a Split after Transpose": matmul_of(
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("Split", ["t"], ["a", "m"], axis=1, num_outputs=2),
        w=np.concatenate([W.T + 1, W.T]),
    ),
    "MatMul after Slice": matmul_of(
        node("Slice", ["w", "starts", "ends", "axes"], ["m"]),
        w=np.concatenate([W + 1, W], axis=1),
        starts=index(N),
        ends=index(2**62),
        axes=index(1),
    ),
    "MatMul after QDQ": matmul_of(
        node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=1),
        node("DequantizeLinear", ["q", "s", "z"], ["m"], axis=1),
        w=W,
        s=SCALE,
        z=ZERO,
    ),
    "MatMul of INT8 codes": matmul_of(
        node("DequantizeLinear", ["w", "s", "z"], ["m"], axis=1),
        w=np.clip(np.rint(W / 0.05), -127, 127).astype(np.int8),
        s=SCALE,
        z=ZERO,
    ),
    "MatMul of INT8 codes after Transpose": matmul_of(
        node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
        node("Transpose", ["d"], ["m"], perm=[1, 0]),
        w=np.clip(np.rint(W.T / 0.05), -127, 127).astype(np.int8),
        s=SCALE,
        z=ZERO,
    ),
    "MatMul of a Constant node": matmul_of(node("Constant", [], ["m"], value=numpy_helper.from_array(W))),
}


def gemm(transposed: int) -> list[object]:
    return [node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)]


RANK2 = [("x", FLOAT, [5, K])], [("y", FLOAT, [5, N])]
STORED |= {
    "Gemm transB=1": proto(gemm(1), *RANK2, {"w": W.T.copy(), "b": normal(N)}),  # type: ignore[arg-type]
    "Gemm transB=0": proto(gemm(0), *RANK2, {"w": W, "b": normal(N)}),  # type: ignore[arg-type]
}


def only_site(made) -> tuple[object, Site]:
    loaded = model(made)
    (site,) = find_sites(loaded)
    return loaded, site


def probe(made, site: Site, loaded) -> Array:
    """w[out, k] as onnxruntime sees it: the answers to the unit vectors."""
    x = made.graph.input[0]
    shape = [d.dim_value for d in x.type.tensor_type.shape.dim]
    feed = np.zeros(shape, np.float32).reshape(-1, site.k)
    answers = []
    for k in range(site.k):
        unit = feed.copy()
        unit[0, k] = 1
        here = run(loaded, {"x": unit.reshape(shape)})["y"].reshape(-1, site.out)[0]
        nothing = run(loaded, {"x": feed.reshape(shape)})["y"].reshape(-1, site.out)[0]
        answers.append(here - nothing)
    return np.stack(answers, axis=1)


@pytest.mark.parametrize("form", list(STORED))
def test_each_form_is_one_site_read_as_out_by_k(form: str):
    loaded, site = only_site(STORED[form])
    assert (site.out, site.k) == (N, K)
    assert site.conflicts == []
    w = site.read().astype(np.float32) * (0.05 if site.quantised == "int8" else 1)
    tolerance = 0.026 if site.quantised else 1e-6
    np.testing.assert_allclose(w, probe(STORED[form], site, loaded), atol=tolerance, rtol=0)
    assert site.activation.name == "x"


@pytest.mark.parametrize("form", list(STORED))
def test_what_is_written_is_what_the_graph_then_computes(form: str):
    loaded, site = only_site(STORED[form])
    codes = rng(3).integers(-3, 4, (N, K))
    site.write(codes.astype(site.read().dtype))
    np.testing.assert_array_equal(site.read().astype(np.float32), codes)
    if site.quantised == "int8":
        codes = codes * 0.05
    np.testing.assert_allclose(
        probe(STORED[form], site, loaded), codes, atol=0.026 if site.quantised == "qdq" else 1e-5
    )


@pytest.mark.parametrize(("form", "k_axis"), [("MatMul", 0), ("MatMul, rank 3", 1), ("Gemm transB=1", 1)])
def test_the_stored_axis_of_the_groups(form: str, k_axis: int):
    _, site = only_site(STORED[form])
    assert site.k_axis == k_axis
    assert site.weight.shape[site.k_axis] == K
    assert site.weight.shape[site.view.stored_axis(0)] == N


@pytest.mark.parametrize("form", [form for form in STORED if "Quant" not in form])
def test_the_patterns_are_those_of_the_values_of_the_moment(form: str):
    _, site = only_site(STORED[form])
    assert site.patterns == ()
    kept = np.ones((N, K), bool)
    kept[:, 2::4] = kept[:, 3::4] = False
    for pattern, mask in ((TWO_FOUR, kept), (None, np.ones((N, K), bool))):
        site.write((np.where(mask, 3, 0)).astype(site.read().dtype))
        assert (TWO_FOUR in site.patterns) is (pattern is not None)
        assert site.patterns == patterns_of(site.read(), site.channels)


def test_who_looked_at_patterns_keeps_no_values_that_were_replaced():
    _, site = only_site(STORED["MatMul"])
    site.write(np.ones((N, K), np.float32))
    assert site.patterns == ()
    old = weakref.ref(site.weight._values)
    site.write(np.zeros((N, K), np.float32))
    assert old() is None


def test_a_pattern_holds_to_the_last_group():
    w = np.zeros((128, 128), np.float32)
    w[:, ::2] = 1
    w[-1, -1] = 1
    inputs: list[tuple[str, int, list[int | str | None]]] = [("x", FLOAT, [1, 128])]
    loaded = model(proto([node("MatMul", ["x", "w"], ["y"])], inputs, [("y", FLOAT, [1, 128])], {"w": w}))
    (site,) = find_sites(loaded)
    assert site.patterns == ()


def test_writing_one_part_leaves_the_others():
    packed = normal(K, 3 * N)
    parts = [node("Split", ["w"], ["q", "k", "v"], axis=1, num_outputs=3)]
    parts += [node("MatMul", ["x", p], [f"{p}y"]) for p in "qkv"]
    made = proto(parts, X, [(f"{p}y", FLOAT, [2, 5, N]) for p in "qkv"], {"w": packed})
    loaded = model(made)
    sites = find_sites(loaded)
    assert [s.name for s in sites] == ["w[0:12]", "w[12:24]", "w[24:36]"]
    assert all(not s.conflicts for s in sites)
    sites[1].write(np.zeros((N, K), np.float32))
    np.testing.assert_array_equal(sites[0].read(), packed[:, :N].T)
    np.testing.assert_array_equal(sites[2].read(), packed[:, 2 * N :].T)
    assert not np.any(run(loaded, {"x": normal(2, 5, K)})["ky"])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_types_are_read_and_written_in_their_own_type(kind: str):
    dtype = np.dtype(np.float16 if kind == "float16" else ml_dtypes.bfloat16)
    code = helper.np_dtype_to_tensor_dtype(dtype)
    weights = {"w": W.astype(dtype)}
    loaded = model(proto([node("MatMul", ["x", "w"], ["y"])], [("x", code, [1, K])], [("y", code, [1, N])], weights))
    (site,) = find_sites(loaded)
    assert site.dtype == kind
    assert site.read().dtype == dtype
    site.write(site.read() * dtype.type(2))
    np.testing.assert_array_equal(site.read().astype(np.float32), 2 * W.astype(dtype).astype(np.float32).T)
    (again,) = find_sites(loaded)
    assert again.dtype == kind


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((6, 8, 1, 1), {}),
        ((6, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((6, 4, 3, 3), {"group": 2}),
        ((8, 1, 3, 3), {"group": 8}),
        ((5, 3, 4, 4), {"strides": [4, 4]}),
        ((6, 8, 3), {}),
    ],
)
def test_conv_kernels_group_channels_at_each_position(shape, attributes):
    kernel = normal(*shape)
    channels = shape[1] * attributes.get("group", 1)
    image = [1, channels, *[8] * (len(shape) - 2)]
    inputs = [("x", FLOAT, image)]
    made = proto([node("Conv", ["x", "w"], ["y"], **attributes)], inputs, [("y", FLOAT, None)], {"w": kernel})
    loaded = model(made)
    (site,) = find_sites(loaded)
    positions = int(np.prod(shape[2:]))
    assert (site.out, site.k) == (shape[0], positions * shape[1])
    assert (site.k_axis, site.view.stored_axis(0)) == (1, 0)
    w = site.read()
    np.testing.assert_array_equal(
        w.reshape(shape[0], positions, shape[1])[:, 0], kernel.reshape(*shape[:2], -1)[..., 0]
    )
    pruned = w.copy()
    pruned[:, 1::2] = 0
    site.write(pruned)
    np.testing.assert_array_equal(site.read(), pruned)
    stored = site.weight.values
    if shape[1] % 2 == 0:
        assert not stored[:, 1::2].any()
        np.testing.assert_array_equal(stored[:, ::2], kernel[:, ::2])


def test_a_shared_weight_is_one_site():
    nodes = [node("Identity", ["w"], ["i"]), node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["x", "i"], ["y"])]
    made = proto(nodes, X, [*Y, ("h", FLOAT, [2, 5, N])], {"w": W})
    (site,) = find_sites(model(made))
    assert [r.outputs[0].name for r in site.readers] == ["h", "y"]
    assert site.conflicts == []


def test_the_left_operand_is_found_behind_the_second_part_of_a_split():
    nodes = [node("Split", ["w"], ["a", "b"], axis=0, num_outputs=2), node("MatMul", ["b", "x"], ["y"])]
    made = proto(nodes, [("x", FLOAT, [K, 3])], [("y", FLOAT, [6, 3])], {"w": normal(12, K)})
    (site,) = find_sites(model(made))
    assert site.operand(site.readers[0]) == 0
    assert site.activation.name == "x"


@pytest.mark.parametrize("bias_first", [True, False])
def test_bias_and_output(bias_first: bool):
    inputs = ["b", "h"] if bias_first else ["h", "b"]
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Add", inputs, ["y"])]
    (site,) = find_sites(model(proto(nodes, X, Y, {"w": W, "b": normal(N)})))
    assert site.bias is not None
    assert (site.bias.name, site.output.name) == ("b", "y")


def test_the_input_is_seen_through_a_pair_and_only_through_a_pair():
    s, z = np.float32(0.1), np.int8(0)
    pair = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"])]
    constants = {"w": W, "s": np.array(s), "z": np.array(z)}
    (site,) = find_sites(model(proto([*pair, node("MatMul", ["d", "w"], ["y"])], X, Y, constants)))
    assert site.activation.name == "x"
    lone = [node("DequantizeLinear", ["x", "s", "z"], ["d"]), node("MatMul", ["d", "w"], ["y"])]
    (site,) = find_sites(model(proto(lone, [("x", TensorProto.INT8, [2, 5, K])], Y, constants)))
    assert site.activation.name == "d"


@pytest.mark.parametrize(
    ("name", "scopes", "path"),
    [
        ("/blocks/blocks.0/attn/qkv/MatMul", None, "blocks.0.attn.qkv"),
        ("/head/Gemm", None, "head"),
        ("/layers/layers.1/blocks/blocks.3/mlp/fc1/MatMul", None, "layers.1.blocks.3.mlp.fc1"),
        ("MatMul_17", None, ""),
        ("node_linear", "['', 'blocks.0', 'blocks.0.attn', 'blocks.0.attn.qkv', 'linear']", "blocks.0.attn.qkv"),
        ("node_linear", "not a list (", ""),
        ("/head/Gemm", "17", "head"),
    ],
)
def test_module_paths(name: str, scopes: str | None, path: str):
    made = proto([node("MatMul", ["x", "w"], ["y"], name=name)], X, Y, {"w": W})
    if scopes is not None:
        made.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert module_path(model(made).graph.nodes[0]) == path


def test_cast_weights_know_what_they_are_computed_in():
    _, site = only_site(STORED["MatMul after Cast"])
    assert (site.dtype, site.reads_as) == ("float16", np.dtype(np.float32))
    _, site = only_site(STORED["MatMul"])
    assert site.reads_as == np.dtype(np.float32)
