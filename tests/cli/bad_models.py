"""Model files that are broken in one way each, made from the embedded digits model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from command_line import MODEL
from onnx import TensorProto, helper, numpy_helper

Maker = Callable[[Path], object]


def not_onnx(path: Path) -> None:
    path.write_text("<html>404: the model is not here</html>")


def truncated(path: Path) -> None:
    path.write_bytes(MODEL.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def external(path: Path) -> Path:
    """The model with its weights in `PATH.data`; returns that file."""
    onnx.save(onnx.load(MODEL), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    return path.with_name(f"{path.name}.data")


def data_missing(path: Path) -> None:
    external(path).unlink()


def data_truncated(path: Path) -> None:
    data = external(path)
    data.write_bytes(data.read_bytes()[:-1000])


def data_outside(path: Path) -> None:
    """The data lies one folder up, and the model points there."""
    data = external(path)
    data.rename(path.parent.parent / data.name)
    _edit(path, lambda proto: _relocate(proto, f"../{data.name}"))


def data_absolute(path: Path) -> None:
    """The same, by an absolute path."""
    data = external(path)
    moved = data.rename(path.parent.parent / data.name)
    _edit(path, lambda proto: _relocate(proto, str(moved.resolve())))


def opset_26(path: Path) -> None:
    proto = onnx.load(MODEL)
    proto.opset_import[0].version = 26
    onnx.save(proto, path)


def opset_10(path: Path) -> None:
    proto = onnx.load(MODEL)
    proto.opset_import[0].version = 10
    onnx.save(proto, path)


def with_value(value: float) -> Maker:
    """One element of one weight replaced."""

    def make(path: Path) -> None:
        proto = onnx.load(MODEL)
        read = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
        tensor = next(t for t in proto.graph.initializer if t.name in read)
        w = numpy_helper.to_array(tensor).copy()
        w[3, 5] = value
        tensor.CopyFrom(numpy_helper.from_array(w, tensor.name))
        onnx.save(proto, path)

    return make


def huge_weights(path: Path) -> None:
    """One whole weight at the end of float32's range: finite, and all that it makes is not."""
    proto = onnx.load(MODEL)
    read = [node.input[1] for node in proto.graph.node if node.op_type == "MatMul"]
    tensor = [t for t in proto.graph.initializer if t.name in read][1]
    tensor.raw_data = np.full(tuple(tensor.dims), 3e38, np.float32).tobytes()
    onnx.save(proto, path)


def no_weights(path: Path) -> None:
    """A model that only adds its input to itself."""
    spec = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 32, 32]) for name in ("pixel_values", "logits")
    ]
    node = helper.make_node("Add", ["pixel_values", "pixel_values"], ["logits"], name="twice")
    graph = helper.make_graph([node], "g", spec[:1], spec[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def odd_weight(path: Path) -> None:
    """One Linear whose reduction length is no multiple of four."""
    spec = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 6), ("y", 8))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")
    w = numpy_helper.from_array(np.ones((6, 8), np.float32), "w")
    graph = helper.make_graph([node], "g", spec[:1], spec[1:], [w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def _edit(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    proto = onnx.load(path, load_external_data=False)
    edit(proto)
    path.write_bytes(proto.SerializeToString())


def _relocate(proto: onnx.ModelProto, location: str) -> None:
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
