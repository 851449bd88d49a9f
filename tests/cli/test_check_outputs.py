"""`check` compares the outputs that are tensors of numbers, and says which ones are none."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import call
from onnx import TensorProto, helper, numpy_helper


def classifier(path: Path, *outputs: str) -> Path:
    """x → Softmax p → ZipMap, as exporters of scikit-learn's classifiers write it, with these of its outputs."""
    maps = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    values = {
        "p": helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 3]),
        "maps": helper.make_value_info("maps", helper.make_sequence_type_proto(maps)),
        "names": helper.make_tensor_value_info("names", TensorProto.STRING, ["N"]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"]),
        helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        helper.make_node("ArgMax", ["z"], ["best"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder", ["best"], ["names"], domain="ai.onnx.ml", keys_int64s=[0, 1, 2], values_strings=list("abc")
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [values[name] for name in outputs],
        [numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_maps_and_strings_are_left_out_and_named(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx", "p", "maps", "names")
    found = json.loads(call("check", model, model, "--samples", "8", "--json", "-").out)
    assert [output["name"] for output in found["comparison"]["outputs"]] == ["p"]
    assert found["comparison"]["default"]["outputs"][0]["cosine_mean"] == pytest.approx(1)
    assert found["notes"] == ["no tensors of numbers, and left out: maps, names"]


def test_a_model_without_any_other_output_is_refused(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx", "maps", "names")
    outcome = call("check", model, model, "--samples", "8")
    assert outcome.code == 3
    assert "no output that can be compared" in outcome.err and "found: maps, names" in outcome.err


def test_such_a_model_is_timed(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx", "p", "maps", "names")
    outcome = call("bench", model, "--backend", "onnxruntime", "--batch", "2", "--rounds", "3")
    assert outcome.code == 0, outcome.err
