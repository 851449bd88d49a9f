"""Whether a model was changed is seen without keeping what it was."""

import gc
import weakref

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.graph.model import Model, from_proto
from gpusq_onnx.graph.snapshot import take
from gpusq_onnx.pipeline.fingerprint import Fingerprint


def small() -> Model:
    w = np.random.default_rng(0).standard_normal((32, 16), np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, n]) for name, n in (("x", 32), ("y", 16))]
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([product], "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), None)


def test_equal_values_are_no_change_and_others_are() -> None:
    made = small()
    (weight,) = made.constants()
    for _ in range(2):  # as it came, then as an array in memory
        mark = Fingerprint(take(made))
        assert not mark.differs_from(take(made))
        weight.values = np.array(weight.values)
        assert not mark.differs_from(take(made))
    weight.values = weight.values * 2
    assert mark.differs_from(take(made))
    mark = Fingerprint(take(made))
    made.graph.nodes[0].name = "renamed"
    assert mark.differs_from(take(made))


def test_no_array_is_kept() -> None:
    made = small()
    (weight,) = made.constants()
    weight.values = np.array(weight.values)
    old, mark = weakref.ref(weight.values), Fingerprint(take(made))
    weight.values = weight.values + 1
    gc.collect()
    assert old() is None
    assert mark.differs_from(take(made))
