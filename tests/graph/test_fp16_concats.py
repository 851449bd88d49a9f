"""Concats between pairs with FP16 scales: a default session loads what is written, and computes the same."""

import numpy as np
import pytest
from small_graphs import FLOAT, model, node, proto

from gpusq_onnx.graph import io
from gpusq_onnx.graph.fp16.concats import protect_concats
from gpusq_onnx.graph.fp16.policy import kept_single
from gpusq_onnx.graph.fp16.rewrite import halve
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.runtime.ort import Session


def joined(*, layout: bool = False, float_input: bool = False, half: bool = True) -> Model:
    """a and b [2, 4, 6], each through a pair, joined along axis 1, and a pair; with `layout`, Reshapes are between.

    y2 is the same, joined along axis 2; no node has a name.
    """
    constants = {
        "s": np.float32(2.0**-5), "z": np.int8(0), "t": np.float32(2.0**-4),
        "flat": np.array([2, 24], np.int64), "back": np.array([2, 4, 6], np.int64),
    }  # fmt: skip
    nodes = [
        *(made for name in "ab" for made in [
            node("QuantizeLinear", [name, "s", "z"], [f"{name}q"]),
            node("DequantizeLinear", [f"{name}q", "s", "z"], [f"{name}d"]),
        ]),
        node("Relu" if float_input else "Identity", ["bd"], ["b0"]),
    ]  # fmt: skip
    if layout:
        nodes += [
            node("Reshape", ["ad", "flat"], ["a1"]),
            node("Reshape", ["a1", "back"], ["a2"]),
            node("Concat", ["a2", "b0"], ["both"], axis=1),
            node("Shape", ["both"], ["shape"]),
            node("Reshape", ["both", "shape"], ["h"]),
        ]
    else:
        nodes += [node("Concat", ["ad", "b0"], ["h"], axis=1)]
    nodes += [node("Concat", ["ad", "b0"], ["h2"], axis=2)]
    for x, y in (("h", "y"), ("h2", "y2")):
        nodes += [node("QuantizeLinear", [x, "t", "z"], [f"{y}q"]), node("DequantizeLinear", [f"{y}q", "t", "z"], [y])]
    inputs, outputs = [(name, FLOAT, [2, 4, 6]) for name in "ab"], [(name, FLOAT, None) for name in ("y", "y2")]
    made = model(proto(nodes, inputs, outputs, constants, opset=20))
    if half:
        structure = analyse(made)
        halve(made, structure.types, set(kept_single(made, structure.flow, structure.types, ())))
    return made


@pytest.mark.parametrize("layout", [False, True], ids=["plain", "layout"])
def test_a_default_session_loads_the_model_and_computes_the_same(layout: bool) -> None:
    made = joined(layout=layout)
    assert len(protect_concats(made)) == 2
    assert [n.inputs[1].dtype for n in made.graph.nodes if n.op == "QuantizeLinear"].count(np.float32) == 2
    rng = np.random.default_rng(0)
    feed = {name: rng.uniform(-3, 3, (2, 4, 6)).astype(np.float32) for name in "ab"}
    as_written, default = (Session(io.to_bytes(made), optimize=optimize).run(feed) for optimize in (False, True))
    for name, y in as_written.items():
        np.testing.assert_array_equal(default[name], y)
    assert protect_concats(made) == []


@pytest.mark.parametrize("options", [{"float_input": True}, {"half": False}], ids=["a float input", "FP32 scales"])
def test_a_concat_that_onnxruntime_leaves_alone_stays(options: dict[str, bool]) -> None:
    assert protect_concats(joined(**options)) == []
