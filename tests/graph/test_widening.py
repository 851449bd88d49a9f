"""bfloat16 becomes float32 wherever it is named: weights, constants in branches, Casts, fills, inputs and outputs."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.graph import io
from gpusq_onnx.graph.widening import holds_bfloat16, widen
from gpusq_onnx.runtime.ort import Session

BF16 = TensorProto.BFLOAT16
info = helper.make_tensor_value_info


def constant(name: str, values: list[float] | list[list[float]]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, ml_dtypes.bfloat16), name)


def written(path: Path) -> Path:
    """y = x · w + fill, then once more, or not, in a branch; z is a float32 sum of a Cast."""
    then = helper.make_graph(
        [
            helper.make_node("Constant", [], ["one"], value=constant("", [1.0, 2.0])),
            helper.make_node("Add", ["sum", "one"], ["then"]),
        ],
        "then",
        [],
        [info("then", BF16, [1, 2])],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Add", ["sum", "inner"], ["else"])],
        "else",
        [],
        [info("else", BF16, [1, 2])],
        [constant("inner", [3.0, 4.0])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("ConstantOfShape", ["shape"], ["fill"], value=constant("", [0.5])),
            helper.make_node("Add", ["product", "fill"], ["sum"]),
            helper.make_node("If", ["choice"], ["y"], then_branch=then, else_branch=otherwise),
            helper.make_node("Cast", ["sum"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["wide"], ["narrow"], to=BF16),
            helper.make_node("Cast", ["narrow"], ["z"], to=TensorProto.FLOAT),
        ],
        "brain",
        [info("x", BF16, [1, 2]), info("choice", TensorProto.BOOL, [])],
        [info("y", BF16, [1, 2]), info("z", TensorProto.FLOAT, [1, 2])],
        [constant("w", [[1.0, 2.0], [3.0, 4.0]]), numpy_helper.from_array(np.array([1, 2]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def test_everything_is_float32_and_computes_the_same(tmp_path: Path) -> None:
    model = io.load(written(tmp_path / "brain.onnx"))
    assert holds_bfloat16(model)
    widen(model)
    assert not holds_bfloat16(model)
    io.save(model, tmp_path / "wide.onnx")
    onnx.checker.check_model(str(tmp_path / "wide.onnx"), full_check=True)
    session = Session(tmp_path / "wide.onnx")
    for choice, added in ((True, [1, 2]), (False, [3, 4])):
        found = session.run({"x": np.array([[1, 1]], np.float32), "choice": np.array(choice)})
        np.testing.assert_array_equal(found["z"], [[4.5, 6.5]])
        np.testing.assert_array_equal(found["y"], found["z"] + np.array(added, np.float32))


def test_widening_again_changes_nothing(tmp_path: Path) -> None:
    model = io.load(written(tmp_path / "brain.onnx"))
    widen(model)
    before = model.clone()
    widen(model)
    assert before.export()[0] == model.export()[0]
