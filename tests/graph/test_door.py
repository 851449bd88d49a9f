"""The door: a model that breaks a rule is refused with its node or tensor named, before anything walks it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from gpusq_onnx.errors import GpusqError, InvariantError, UnsupportedModelError, UsageError
from gpusq_onnx.graph import blame, io
from gpusq_onnx.graph.door import admission as door
from tools.fuzz import seeds

Edit = Callable[[ModelProto], None]


def node(proto: ModelProto, op: str) -> NodeProto:
    return next(node for node in proto.graph.node if node.op_type == op)


def stored(proto: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def circle(proto: ModelProto) -> None:
    """Two view operators that feed each other, on the way to a weight: what made `plan` run for ever."""
    first, second = node(proto, "Transpose"), node(proto, "Cast")
    first.input[0], second.input[0] = second.output[0], first.output[0]


def circle_through_a_subgraph(proto: ModelProto) -> None:
    """A branch of the If reads what the If itself makes."""
    branch = node(proto, "If").attribute[0].g
    branch.node[0].input[0] = node(proto, "If").output[0]


def functions_in_a_circle(proto: ModelProto) -> None:
    proto.functions[0].node[0].op_type, proto.functions[0].node[0].domain = "Twice", "local"
    del proto.functions[0].node[0].input[1]
    proto.functions[0].opset_import.append(helper.make_opsetid("local", 1))


def typed(field: str, values: list) -> Edit:
    def edit(proto: ModelProto) -> None:
        tensor = stored(proto, "last")
        tensor.ClearField("raw_data")
        getattr(tensor, field).extend(values)

    return edit


def changed(name: str, **values: object) -> Edit:
    def edit(proto: ModelProto) -> None:
        tensor = stored(proto, name)
        for field, value in values.items():
            if field == "dims":
                tensor.dims[:] = value
            else:
                setattr(tensor, field, value)

    return edit


def on(op: str, edit: Callable[[NodeProto], object]) -> Edit:
    return lambda proto: edit(node(proto, op)) and None


REFUSED: dict[str, tuple[str, Edit, list[str]]] = {
    "a circle": ("laid_out", circle, ["depends on its own output", "the graph"]),
    "a circle through a subgraph": ("controlled", circle_through_a_subgraph, ["'If2' (If)", "depends on its own"]),
    "functions in a circle": ("controlled", functions_in_a_circle, ["'Twice' calls itself"]),
    "more parts than it says": (
        "laid_out",
        on("Split", lambda n: n.output.append("more") or 1),
        ["(Split) has 3 outputs", "num_outputs says 2"],
    ),
    "two functions of a name": (
        "controlled",
        lambda p: p.functions.append(p.functions[0]),
        ["local functions", "multiple local functions"],
    ),
    "a call with too many inputs": (
        "controlled",
        on("Twice", lambda n: n.input.extend(n.input) or 1),
        ["local functions", "cannot exceed"],
    ),
    "an unknown operator": (
        "block",
        on("Relu", lambda n: setattr(n, "op_type", "Rleu") or 1),
        ["(Rleu)", "no operator"],
    ),
    "an unknown domain": ("block", on("Relu", lambda n: setattr(n, "domain", "x") or 1), ["'x'", "not imported"]),
    "too few inputs": ("block", on("Add", lambda n: n.input.pop()), ["(Add) has 1 inputs", "2 to 2"]),
    "an input left out": ("block", on("Add", lambda n: n.input.__setitem__(0, "") or 1), ["lacks an input"]),
    "no outputs": ("block", on("Relu", lambda n: n.output.pop()), ["Relu", "0 outputs"]),
    "a graph without outputs": ("block", lambda proto: proto.graph.ClearField("output"), ["has no outputs"]),
    "an output that nothing makes": (
        "block",
        lambda proto: setattr(proto.graph.output[0], "name", "elsewhere"),
        ["nothing makes the output 'elsewhere'"],
    ),
    "a Cast to no type": ("laid_out", on("Cast", lambda n: setattr(n.attribute[0], "i", 255) or 1), ["(Cast) is 255"]),
    "an unknown attribute": (
        "block",
        on("Softmax", lambda n: n.attribute.append(helper.make_attribute("axle", 1)) or 1),
        ["'axle'"],
    ),
    "an attribute of another type": (
        "block",
        on("Softmax", lambda n: n.attribute[0].CopyFrom(helper.make_attribute("axis", [1])) or 1),
        ["another type"],
    ),
    "an attribute of no type": ("block", on("Softmax", lambda n: setattr(n.attribute[0], "type", 0) or 1), ["type 0"]),
    "an attribute of two types": (
        "block",
        on("Softmax", lambda n: n.attribute[0].ints.append(1) or 1),
        ["values of several types"],
    ),
    "an attribute twice": (
        "block",
        on("Softmax", lambda n: n.attribute.append(n.attribute[0]) or 1),
        ["'axis' more than once"],
    ),
    "a missing attribute": ("laid_out", on("Cast", lambda n: n.attribute.pop()), ["lacks the attribute 'to'"]),
    "an unknown element type": ("block", changed("fc1", data_type=99), ["'fc1'", "element type 99"]),
    "a negative dimension": ("block", changed("fc1", dims=[-1, 32]), ["'fc1'", "[-1, 32]"]),
    "dimensions that overflow": ("block", changed("fc1", dims=[2**40, 2**40]), ["'fc1'", "impossible shape"]),
    "raw data too short": ("block", changed("fc1", raw_data=b"1234"), ["'fc1'", "4 bytes", "2048 bytes"]),
    "typed data too short": ("controlled", typed("float_data", [1.0] * 5), ["'last'", "5 of 256 values"]),
    "typed data of another type": ("controlled", typed("int64_data", [1] * 256), ["'last'", "0 of 256 values"]),
    "a value out of its type": (
        "quantised",
        lambda p: stored(p, "zero").ClearField("raw_data") or stored(p, "zero").int32_data.append(300),
        ["300"],
    ),
    "a weight without elements": (
        "block",
        lambda p: changed("fc1", dims=[16, 0])(p) or stored(p, "fc1").ClearField("raw_data"),
        ["'fc1'", "MatMul"],
    ),
    "axes in a matrix": (
        "laid_out",
        lambda p: changed("starts", dims=[1, 1])(p),
        ["(Slice)", "'starts' has 2 axes"],
    ),
    "two makers": ("block", on("Relu", lambda n: n.output.__setitem__(0, "logits") or 1), ["'logits'", "2 times"]),
    "two initializers of a name": ("block", lambda p: setattr(stored(p, "fc1"), "name", "fc2"), ["'fc2'", "2 "]),
    "IR of the future": ("block", lambda p: setattr(p, "ir_version", 99), ["IR version 99"]),
    "IR below nought": ("block", lambda p: setattr(p, "ir_version", -4), ["IR version -4"]),
    "a domain at two versions": (
        "block",
        lambda p: p.opset_import.append(helper.make_opsetid("ai.onnx", 17)),
        ["at several"],
    ),
    "history that is none": (
        "controlled",
        lambda p: helper.set_model_props(p, {"pkg.gpusq_onnx.history": "[1, "}),
        ["pkg.gpusq_onnx.history"],
    ),
    "history nested too deeply": (
        "controlled",
        lambda p: helper.set_model_props(p, {"pkg.gpusq_onnx.history": "[" * 99999}),
        ["history"],
    ),
    "an input that is no tensor": ("block", lambda p: p.graph.input[0].type.Clear(), ["'image'", "no tensor"]),
    "an output of an unknown type": (
        "block",
        lambda p: setattr(p.graph.output[0].type.tensor_type, "elem_type", 77),
        ["'logits'", "77"],
    ),
    "external data in an attribute": (
        "laid_out",
        on(
            "Constant",
            lambda n: (
                n.attribute[0].CopyFrom(
                    helper.make_attribute(
                        "value",
                        TensorProto(
                            data_type=1,
                            dims=[2],
                            data_location=1,
                            external_data=[onnx.StringStringEntryProto(key="location", value="\0")],
                        ),
                    )
                )
                or 1
            ),
        ),
        ["location"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_breaks_a_rule(case: str, tmp_path: Path) -> None:
    seed, edit, says = REFUSED[case]
    proto = seeds.SEEDS[seed]()
    edit(proto)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedModelError) as caught:
        io.load(tmp_path / "m.onnx")
    for text in (*says, "m.onnx"):
        assert text in str(caught.value)


@pytest.mark.parametrize("seed", seeds.SEEDS)
def test_legal_models_come_in(seed: str, tmp_path: Path) -> None:
    proto = seeds.SEEDS[seed]()
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "m.onnx")
    assert io.load(tmp_path / "m.onnx").graph.nodes
    assert blame.contradiction(tmp_path / "m.onnx") is None


def test_typed_values_of_every_type_come_in(tmp_path: Path) -> None:
    proto = seeds.block()
    for kind in set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        tensor = helper.make_tensor(f"t{kind}", kind, [3], np.ones(3, dtype))
        node = helper.make_node("Constant", [], [f"c{kind}"])
        node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
        proto.graph.node.append(node)
    onnx.save(proto, tmp_path / "m.onnx")
    assert io.load(tmp_path / "m.onnx").graph.nodes


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    data = seeds.block().SerializeToString().replace(b"Softmax", b"Soft\xff\xfex")
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UnsupportedModelError, match="not UTF-8"):
        io.load(tmp_path / "m.onnx")


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="a device or a pipe"):
        io.load(tmp_path / "m.onnx")


def test_a_wrong_permutation_is_the_model_s_fault(tmp_path: Path) -> None:
    """No rule of the door asks for shapes; where work fails, ONNX's inference tells the model's fault from ours."""
    proto = seeds.laid_out()
    node(proto, "Transpose").attribute[0].ints[:] = [0, 5]
    onnx.save(proto, tmp_path / "m.onnx")
    io.load(tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModelError, match="contradicts itself") as caught, blame.blaming(tmp_path / "m.onnx"):
        raise InvariantError("something of ours")
    assert "Transpose" in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("x"), InvariantError("x"), OSError("x"), UsageError("x")])
def test_faults_that_are_ours_stay_ours(error: Exception, tmp_path: Path) -> None:
    onnx.save(seeds.block(), tmp_path / "m.onnx")
    with pytest.raises(type(error)) as caught, blame.blaming(tmp_path / "m.onnx"):
        raise error
    assert caught.value is error


def test_every_rule_is_in_the_table_once_and_says_what_it_is() -> None:
    rules = [rule for group in door.READABLE + door.USABLE for rule in group]
    assert len(set(rules)) == len(rules)
    assert all(rule.__doc__ for rule in rules)
    assert issubclass(UnsupportedModelError, GpusqError)
