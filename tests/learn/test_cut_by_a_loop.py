"""A model with a Loop in the middle: what comes before it is trained, and compared with the teacher there alone."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.learn.settings import TrainingOptions
from gpusq_onnx.learn.setup import prepare

MODEL = Path(__file__).parents[1] / "assets" / "digits_vit.onnx"


def with_a_loop(folder: Path, end: str) -> Path:
    """The embedded model, with a Loop of two rounds that change nothing after the tensor `end`."""
    proto = onnx.load(MODEL)
    for node in proto.graph.node:
        node.input[:] = ["looped" if name == end else name for name in node.input]
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("before", "after")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    steps = [helper.make_node("Identity", ["before"], ["after"]), helper.make_node("Identity", ["go"], ["on"])]
    body = helper.make_graph(steps, "body", [count, flags[0], state[0]], [flags[1], state[1]])
    place = next(i for i, node in enumerate(proto.graph.node) if end in node.output)
    proto.graph.initializer.append(helper.make_tensor("rounds", TensorProto.INT64, [], [2]))
    proto.graph.node.insert(place + 1, helper.make_node("Loop", ["rounds", "", end], ["looped"], body=body))
    onnx.save(proto, folder / "looped.onnx")
    return folder / "looped.onnx"


def test_maps_after_the_loop_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    end = analyse(io.load(MODEL)).blocks[0].output
    student, teacher = (io.load(with_a_loop(tmp_path, end)) for _ in range(2))
    structure = analyse(student)
    setup = prepare(student, structure, teacher, TrainingOptions())
    assert [pair.student for pair in setup.outputs] == [end]
    assert {pair.student for pair in setup.maps} <= {end}
    assert len(structure.feature_maps) > len(setup.maps)
    assert any("not compared" in note for note in setup.notes)


def test_a_loop_before_the_first_block_leaves_the_patch_embedding(tmp_path: Path) -> None:
    (patches,) = (site for site in analyse(io.load(MODEL)).sites if site.role == "patch_embed")
    student, teacher = (io.load(with_a_loop(tmp_path, patches.output.name)) for _ in range(2))
    setup = prepare(student, analyse(student), teacher, TrainingOptions())
    assert [pair.student for pair in setup.outputs] == [patches.output.name]
    assert not setup.maps
    assert setup.tokens is None
