"""Q/DQ pairs: where they are, what they look like, and that onnxruntime computes what numpy does."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import FLOAT, HALF, initializer, model, node, normal, proto, run, text

from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.qdq.codes import codes_of, weight_scales_of
from gpusq_onnx.graph.qdq.pairs import QdqWriter, store_codes
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.graph.sites import find_sites
from gpusq_onnx.quant.formats import INT8, dequantize, fake_quantize, quantize
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.runtime.ort import Session

K, N = 8, 6
X = [("x", FLOAT, [2, 5, K])]
Y = [("y", FLOAT, None)]
W = normal(K, N, seed=1)
SCALES = np.linspace(0.01, 0.03, N).astype(np.float32)
GOLDEN = Path(__file__).with_name("golden_qdq.txt")


def mlp():
    """Two Linears with a shared input beside a third reader, the second after Transpose."""
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        node("Add", ["h", "b"], ["a"]),
        node("Transpose", ["w2"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["g"]),
        node("Relu", ["x"], ["r"]),
        node("Mul", ["a", "g"], ["y"]),
    ]
    constants = {"w1": W, "w2": normal(N, K, seed=2), "b": normal(N)}
    return proto(nodes, X, [*Y, ("r", FLOAT, None)], constants)


def quantised(made, *, input_scale: float = 0.02):
    loaded = model(made)
    sites = find_sites(loaded)
    writer = QdqWriter(loaded, infer_shapes(loaded)[1])
    for site in sites:
        writer.weight(site, Scales(SCALES, 0), INT8)
    writer.activation(sites[0].activation, input_scale, [r for s in sites for r in s.readers], INT8)
    writer.finish()
    invariants.check(loaded, "writing pairs")
    return loaded


def test_one_pair_a_tensor_shared_by_the_readers_that_were_named():
    loaded = quantised(mlp())
    ops = [n.op for n in loaded.graph.nodes]
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear")) == (3, 3)
    reads = {n.name: [t.name for t in n.inputs] for n in loaded.graph.nodes}
    assert reads["MatMul_h"][0] == reads["MatMul_g"][0] == "x_dequantized"
    assert reads["Relu_r"] == ["x"]


def test_the_golden_graph():
    """`python tests/graph/test_qdq.py` writes it anew."""
    assert text(quantised(mlp())) == GOLDEN.read_text()


def test_onnxruntime_computes_what_numpy_does():
    made = mlp()
    loaded = quantised(made)
    x = normal(2, 5, K, seed=7)
    got = Session(io.to_bytes(loaded), exact_qdq=True).run({"x": x})
    xq = fake_quantize(x, 0.02, INT8)
    w1 = fake_quantize(W.T, SCALES, INT8, axis=0)
    w2 = fake_quantize(initializer(made, "w2"), SCALES, INT8, axis=0)
    want = (xq @ w1.T + initializer(made, "b")) * (xq @ w2.T)
    np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got["r"], np.maximum(x, 0))
    assert not np.allclose(got["y"], run(made, {"x": x})["y"], atol=1e-3)


FORMS = {
    "MatMul": ([node("MatMul", ["x", "w"], ["y"])], W, 1, [2, 5, K]),
    "MatMul, rank 3": ([node("MatMul", ["x", "w"], ["y"])], W[None], 2, [2, 5, K]),
    "Gemm transB=0": ([node("Gemm", ["x", "w"], ["y"])], W, 1, [5, K]),
    "Gemm transB=1": ([node("Gemm", ["x", "w"], ["y"], transB=1)], W.T.copy(), 0, [5, K]),
    "Conv": ([node("Conv", ["x", "w"], ["y"])], W.T.reshape(N, K, 1, 1).copy(), 0, [1, K, 3, 3]),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_channel_scales_lie_along_the_output_channels(form: str):
    nodes, stored, axis, shape = FORMS[form]
    made = proto(nodes, [("x", FLOAT, shape)], Y, {"w": stored})
    loaded = model(made)
    (site,) = find_sites(loaded)
    writer = QdqWriter(loaded, infer_shapes(loaded)[1])
    writer.weight(site, Scales(SCALES, 0), INT8)
    writer.finish()
    invariants.check(loaded, "writing pairs")
    assert {n.attrs["axis"] for n in loaded.graph.nodes if "Linear" in n.op} == {axis}
    fake = fake_quantize(site.read(), SCALES, INT8, axis=0)
    made.graph.initializer[0].raw_data = np.ascontiguousarray(site.view.write(fake, stored)).tobytes()
    x = normal(*shape, seed=8)
    got = Session(io.to_bytes(loaded), exact_qdq=True).run({"x": x})["y"]
    np.testing.assert_allclose(got, run(made, {"x": x})["y"], rtol=1e-5, atol=1e-5)
    (again,) = find_sites(loaded)
    assert again.quantised == "qdq"
    np.testing.assert_array_equal(again.read(), site.read())


@pytest.mark.parametrize("form", list(FORMS))
def test_codes_replace_the_float_weight_and_compute_the_same(form: str):
    nodes, stored, _, shape = FORMS[form]
    loaded = model(proto(nodes, [("x", FLOAT, shape)], Y, {"w": stored}))
    (site,) = find_sites(loaded)
    writer = QdqWriter(loaded, infer_shapes(loaded)[1])
    writer.weight(site, Scales(SCALES, 0), INT8)
    writer.finish()
    feed = {"x": normal(*shape, seed=8)}
    before = Session(io.to_bytes(loaded), exact_qdq=True).run(feed)["y"]
    store_codes(loaded, site, quantize(site.read(), SCALES, INT8, axis=0), Names(loaded))
    invariants.check(loaded, "storing codes")
    assert [
        t.name for t in onnx.load_from_string(io.to_bytes(loaded)).graph.initializer if tuple(t.dims) == stored.shape
    ] == ["w_int8"]
    np.testing.assert_array_equal(Session(io.to_bytes(loaded), exact_qdq=True).run(feed)["y"], before)
    (again,) = find_sites(loaded)
    assert (again.quantised, again.dtype) == ("int8", "int8")


def test_scales_take_the_type_of_the_float_side():
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    loaded = model(proto(nodes, [("x", HALF, [5, K])], [("y", HALF, None)], {"w": W.astype(np.float16)}))
    (site,) = find_sites(loaded)
    writer = QdqWriter(loaded, infer_shapes(loaded)[1])
    writer.weight(site, Scales(SCALES, 0), INT8)
    writer.activation(site.activation, 0.02, site.readers, INT8)
    writer.finish()
    invariants.check(loaded, "writing pairs")
    out = onnx.load_from_string(io.to_bytes(loaded))
    assert {t.data_type for t in out.graph.initializer if t.name.endswith("_scale")} == {HALF}
    assert run(out, {"x": normal(5, K, dtype=np.float16)})["y"].dtype == np.float16


def test_names_that_are_taken():
    made = mlp()
    for tensor in made.graph.initializer:
        if tensor.name == "b":
            tensor.name = "x_scale"
    made.graph.node[1].input[1] = "x_scale"
    loaded = quantised(made)
    assert "x_scale_2" in loaded.graph.tensors()


if __name__ == "__main__":
    GOLDEN.write_text(text(quantised(mlp())))


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize(("axis", "shape"), [(1, (N,)), (-1, (N,)), (0, (K,)), (1, (1, N)), (1, (1,)), (1, ())])
def test_scales_that_others_wrote_are_read_as_they_lie(axis: int, shape: tuple[int, ...], split: int) -> None:
    scales = np.linspace(0.01, 0.03, int(np.prod(shape))).astype(np.float32).reshape(shape)
    parts = [f"p{number}" for number in range(split)]
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["d"], axis=axis),
        node("Split", ["d"], parts, axis=1, num_outputs=split),
        *(node("MatMul", ["x", part], [f"y{number}"]) for number, part in enumerate(parts)),
    ]
    stored = (W * 40).astype(np.int8)
    constants = {"w": stored, "s": scales}
    made = proto(nodes, X, [(f"y{number}", FLOAT, None) for number in range(split)], constants)
    along = scales if len(shape) > 1 else scales.reshape((-1, 1) if axis == 0 and shape else (1, -1))
    wanted = np.split(stored * along, split, axis=1)
    for site, w in zip(find_sites(model(made)), wanted, strict=True):
        np.testing.assert_array_equal(dequantize(codes_of(site), weight_scales_of(site)), w.T.astype(np.float32))
