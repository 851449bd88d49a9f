"""Parsing without the bytes of large initializers: equal to protobuf's own parse, whatever the file looks like."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper

from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import peeked, sum_of, values_of
from gpusq_onnx.graph.scan import parse
from gpusq_onnx.graph.wire import GRAPH_INITIALIZER, MODEL_GRAPH, prefix

W = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)


def _model(*tensors: TensorProto) -> ModelProto:
    nodes = [helper.make_node("MatMul", ["x", tensors[0].name], ["y"], name="product")]
    nodes += [helper.make_node("Identity", [t.name], [f"{t.name}_out"]) for t in tensors[1:]]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], list(tensors), doc_string="text")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="me")


def _refilled(path: Path) -> ModelProto:
    """The parsed model with the bytes that were left in the file put back."""
    model, embedded = parse(path, 1024)
    for tensor in model.graph.initializer:
        if tensor.name in embedded:
            assert not tensor.HasField("raw_data")
            tensor.raw_data = embedded[tensor.name].tobytes()
    return model


def test_only_the_bytes_of_large_initializers_stay_in_the_file(tmp_path: Path) -> None:
    small, typed = np.ones(3, np.float32), helper.make_tensor("typed", TensorProto.FLOAT, [600], np.ones(600))
    given = _model(numpy_helper.from_array(W, "w"), numpy_helper.from_array(small, "small"), typed)
    onnx.save(given, tmp_path / "m.onnx")
    model, embedded = parse(tmp_path / "m.onnx", 1024)
    assert list(embedded) == ["w"]
    assert embedded["w"].tobytes() == W.tobytes()
    assert [t.name for t in model.graph.initializer] == ["w", "small", "typed"]
    assert _refilled(tmp_path / "m.onnx") == given


@pytest.mark.parametrize("kind", ["twice the name", "two graphs", "raw data twice"])
def test_what_no_exporter_writes_is_left_to_protobuf(tmp_path: Path, kind: str) -> None:
    w = numpy_helper.from_array(W, "w")
    if kind == "twice the name":
        data = _model(w, w).SerializeToString()
    elif kind == "two graphs":
        data = _model(w).SerializeToString() + ModelProto(graph={"doc_string": "more"}).SerializeToString()
    else:
        part = TensorProto(raw_data=W.tobytes()).SerializeToString()
        doubled = w.SerializeToString() + part
        graph = prefix(GRAPH_INITIALIZER, len(doubled)) + doubled
        data = prefix(MODEL_GRAPH, len(graph)) + graph
    (tmp_path / "m.onnx").write_bytes(data)
    model, embedded = parse(tmp_path / "m.onnx", 1024)
    assert not embedded
    assert model == ModelProto.FromString(data)


def test_every_cut_of_a_file_is_refused_or_parsed_as_protobuf_does(tmp_path: Path) -> None:
    data = _model(numpy_helper.from_array(W, "w")).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in [*range(0, 200, 7), len(data) - 40, len(data) - 1]:
        path.write_bytes(data[:length])
        try:
            expected = ModelProto.FromString(data[:length])
        except DecodeError:
            with pytest.raises(DecodeError):
                parse(path, 1024)
        else:
            assert _refilled(path) == expected


@pytest.mark.parametrize("offset", range(4))
def test_unaligned_values_are_read_right(tmp_path: Path, offset: int) -> None:
    model = _model(numpy_helper.from_array(W, "w"))
    model.producer_name = "p" * offset
    onnx.save(model, tmp_path / "m.onnx")
    loaded = io.load(tmp_path / "m.onnx")
    (w,) = [values_of(c) for c in loaded.constants() if c.name == "w"]
    assert w.flags.aligned
    assert np.array_equal(w, W)


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_values_are_seen_and_summed_where_they_lie(tmp_path: Path, kind: type, offset: int) -> None:
    stored = (8 * W).astype(kind)
    model = _model(numpy_helper.from_array(stored, "w"))
    model.producer_name = "p" * offset
    onnx.save(model, tmp_path / "m.onnx")
    (w,) = [c for c in io.load(tmp_path / "m.onnx").constants() if c.name == "w"]
    assert peeked(w).dtype == stored.dtype and np.array_equal(peeked(w), stored)
    assert not peeked(w).flags.writeable
    assert sum_of(w) == pytest.approx(float(stored.sum(dtype=np.float64)), rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_sum_tells_of_a_value_that_is_no_number(tmp_path: Path, kind: type, odd: float) -> None:
    stored = W.astype(kind)
    stored[5, 7] = odd
    onnx.save(_model(numpy_helper.from_array(stored, "w")), tmp_path / "m.onnx")
    (w,) = [c for c in io.load(tmp_path / "m.onnx").constants() if c.name == "w"]
    assert not np.isfinite(sum_of(w))
