"""A model that takes any size, at one size."""

import numpy as np
import pytest
from small_graphs import FLOAT, model, node, normal, proto

from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph.model import Model, TensorSpec
from gpusq_onnx.graph.pin import is_open, pin_specs, pinned
from gpusq_onnx.graph.shapes import infer_shapes


def _open() -> Model:
    flat = [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"], ["y"])]
    return model(proto(flat, [("x", FLOAT, ["b", "c", "h", "w"])], [("y", FLOAT, ["b", 2])], {"w": normal(12, 2)}))


def test_only_the_copy_is_pinned() -> None:
    before = _open()
    after = pinned(before, {"x": (7, 3, 2, 2)})
    assert after.inputs()[0].shape == ("b", 3, 2, 2)
    assert before.inputs()[0].shape == ("b", "c", "h", "w")
    assert is_open(before.inputs()) and not is_open(after.inputs())
    assert infer_shapes(after)[0]["f"] == (1, 12)


def test_a_model_of_one_size_is_itself() -> None:
    whole = model(proto([node("Relu", ["x"], ["y"])], [("x", FLOAT, ["b", 3])], [("y", FLOAT, ["b", 3])]))
    assert pinned(whole, {"x": (1, 3)}) is whole


SPEC = TensorSpec("x", np.dtype(np.float32), ("b", 3, "h", None))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"z": (1, 3, 2, 2)}, "no input is named z"),
        ({"x": (1, 4, 2, 2)}, "does not fit input x"),
        ({"x": (1, 3, 2)}, "does not fit input x"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        pin_specs([SPEC], sizes)
