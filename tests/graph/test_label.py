"""The lowest opset that a graph may be written with, and that onnx's schemas still say what the rule relies on."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper
from small_graphs import FLOAT, INT8, Array, graph, model, node, normal, proto

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import io, label
from gpusq_onnx.graph.opset import LOWEST, NEWEST

X = [("x", FLOAT, [2, 7, 32])]
Y = [("y", FLOAT, [2, 7, "n"])]
# Attributes that operators gained from 20 to 25, all of which mean the old behaviour where they are not given.
REVIEWED = {
    "Attention": {"left_window_size", "right_window_size"},
    "Cast": {"round_mode"},
    "CastLike": {"round_mode"},
    "DequantizeLinear": {"block_size", "output_dtype"},
    "GroupNormalization": {"stash_type"},  # whose older form is deprecated: never relabelled
    "QuantizeLinear": {"block_size", "output_dtype", "precision"},
}


def history(name: str) -> list[defs.OpSchema]:
    """The forms of an operator from opset 20 on, oldest first, without those that are deprecated."""
    forms: list[defs.OpSchema] = []
    for version in range(LOWEST, NEWEST + 1):
        try:
            found = defs.get_schema(name, version, "")
        except defs.SchemaError:
            continue
        if not forms or forms[-1].since_version != found.since_version:
            forms.append(found)
    return forms


def test_operators_gain_types_and_reviewed_attributes_and_change_in_nothing_else():
    names = {schema.name for schema in defs.get_all_schemas() if schema.domain == ""}
    gained: dict[str, set[str]] = {}
    for name in sorted(names):
        forms = history(name)
        for old, new in pairwise(forms):
            assert set(old.attributes) <= set(new.attributes), name
            if new.attributes.keys() - old.attributes.keys():
                gained.setdefault(name, set()).update(new.attributes.keys() - old.attributes.keys())
            for key, attribute in old.attributes.items():
                same = new.attributes[key]
                assert (attribute.type, attribute.default_value) == (same.type, same.default_value), (name, key)
            for before, after in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
                for one, other in zip(before, after, strict=False):
                    assert (one.name, one.option) == (other.name, other.option), name
                    assert set(one.types) <= set(other.types), name
    assert gained == REVIEWED


def pair(x: str, name: str, **attributes: int) -> list[onnx.NodeProto]:
    return [
        node("QuantizeLinear", [x, "s", "z"], [f"{name}_q"], **attributes),
        node("DequantizeLinear", [f"{name}_q", "s", "z"], [name], **attributes),
    ]


SCALE: dict[str, Array] = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}


def branches() -> dict[str, onnx.GraphProto]:
    return {
        "then_branch": graph([node("Swish", ["d"], ["t"])], [], [("t", FLOAT, None)], {}),
        "else_branch": graph([node("Relu", ["d"], ["e"])], [], [("e", FLOAT, None)], {}),
    }


CODES = np.zeros((32, 4), ml_dtypes.int4)
HALF_SCALE = {"s16": np.array(0.05, np.float16), "z": np.array(0, np.int8)}
BF16 = np.zeros((4, 2, 3, 3), ml_dtypes.bfloat16)
NEEDS = {
    "int8": (24, [*pair("x", "d"), node("Reshape", ["d", "to"], ["y"])], SCALE | {"to": np.array([14, 32])}, 20),
    "swish": (24, [*pair("x", "d"), node("Swish", ["d"], ["y"])], SCALE, 24),
    "rms": (25, [*pair("x", "d"), node("RMSNormalization", ["d", "w"], ["y"])], SCALE | {"w": normal(32)}, 23),
    "a newer attribute": (
        24,
        [*pair("x", "d"), node("Cast", ["d"], ["y"], to=FLOAT, round_mode="down")],
        SCALE,
        24,
    ),
    "blocks of int4": (
        23,
        [node("DequantizeLinear", ["w", "b"], ["v"], axis=0, block_size=16), node("MatMul", ["x", "v"], ["y"])],
        {"w": CODES, "b": np.ones((2, 4), np.float32)},
        21,
    ),
    "int4 by its type": (
        23,
        [node("DequantizeLinear", ["w", "b"], ["v"], axis=1), node("MatMul", ["x", "v"], ["y"])],
        {"w": CODES, "b": np.ones(4, np.float32)},
        21,
    ),
    "a scale of its own type": (23, [node("QuantizeLinear", ["x", "s16", "z"], ["y"])], HALF_SCALE, 23),
    "inside a branch": (
        24,
        [*pair("x", "d"), node("If", ["c"], ["y"], **branches())],
        SCALE | {"c": np.array(True)},
        24,
    ),
}


@pytest.mark.parametrize("case", NEEDS)
def test_the_lowest_label_is_what_some_node_needs(case: str):
    opset, nodes, constants, wanted = NEEDS[case]
    made = proto(nodes, X, [("y", INT8 if case == "a scale of its own type" else FLOAT, None)], constants, opset=opset)
    assert label.lowest(made) == wanted


def test_a_type_that_came_later_keeps_the_label():
    for kind, wanted in ((TensorProto.BFLOAT16, 22), (FLOAT, 20)):
        weight = BF16 if kind == TensorProto.BFLOAT16 else BF16.astype(np.float32)
        nodes = [node("Conv", ["x", "w"], ["y"])]
        made = proto(nodes, [("x", kind, [1, 2, 8, 8])], [("y", kind, None)], {"w": weight}, opset=23)
        assert label.lowest(made) == wanted


def test_what_inference_does_not_know_is_not_lowered():
    nodes = [helper.make_node("Strange", ["x"], ["u"], domain="mine"), node("Reshape", ["u", "to"], ["y"])]
    made = proto(nodes, X, [("y", FLOAT, None)], {"to": np.array([-1])}, opset=22)
    for _ in range(2):
        assert label.lowest(made) == 21  # inference fails where the domain has no version, too
        made.opset_import.append(helper.make_opsetid("mine", 1))


def test_types_that_no_opset_takes_say_nothing():
    """What a converter to float16 left declared as float32 after an operator that inference does not know."""
    nodes = [
        *pair("x", "d"),
        helper.make_node("Strange", ["d"], ["u"], domain="mine"),
        node("Gemm", ["u", "w", "b"], ["y"]),
    ]
    half = {"w": normal(4, 4).astype(np.float16), "b": normal(4).astype(np.float16)}
    made = proto(nodes, X, [("y", TensorProto.FLOAT16, None)], SCALE | half, opset=21)
    made.graph.value_info.append(helper.make_tensor_value_info("u", FLOAT, None))
    made.opset_import.append(helper.make_opsetid("mine", 1))
    assert label.lowest(made) == 20


def test_operators_that_no_opset_has_together():
    older = node("GroupNormalization", ["d", "w", "w"], ["y"], num_groups=7)
    made = proto([*pair("x", "d"), older], X, Y, SCALE | {"w": normal(7)}, opset=20)
    made.graph.node.append(node("Swish", ["d"], ["v"]))
    with pytest.raises(UnsupportedModelError, match=r"no opset has the operator"):
        label.lowest(made)


@pytest.mark.parametrize("opset", [20, 21, 23, 25])
def test_a_float_model_keeps_its_label_and_a_quantised_one_gets_the_lowest(opset: int):
    plain = model(proto([node("Relu", ["x"], ["y"])], X, Y, opset=opset))
    label.settle(plain)
    assert onnx.load_from_string(io.to_bytes(plain)).opset_import[0].version == opset
    quantised = model(proto([*pair("x", "d"), node("Relu", ["d"], ["y"])], X, Y, SCALE, opset=opset))
    label.settle(quantised)
    written = onnx.load_from_string(io.to_bytes(quantised))
    assert (written.opset_import[0].version, written.ir_version) == (20, 10)
    onnx.checker.check_model(written)


def test_a_label_is_raised_for_what_a_pass_wrote():
    made = model(proto([node("MatMul", ["x", "w"], ["y"])], X, Y, {"w": normal(32, 4)}, opset=20))
    made.header.opset_import[0].version = made.graph.opset = 20
    blocks = proto(NEEDS["blocks of int4"][1], X, Y, NEEDS["blocks of int4"][2], opset=21)
    blocks.opset_import[0].version = 20
    made = model(blocks)
    label.settle(made)
    assert made.opset == onnx.load_from_string(io.to_bytes(made)).opset_import[0].version == 21
