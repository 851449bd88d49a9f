"""A detector whose queries a TopK selects: student and teacher are compared on the same ones."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.graph import io  # noqa: E402
from gpusq_onnx.graph.model import Model  # noqa: E402
from gpusq_onnx.graph.structure import analyse  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402
from gpusq_onnx.learn.setup import Setup, prepare  # noqa: E402
from gpusq_onnx.torchgraph.prefix import selections, trainable_prefix  # noqa: E402

TOKENS, WIDTH, QUERIES = 6, 8, 3


def two_stage(path: Path, seed: int) -> Model:
    """x[N, 6, 8] -> memory; its best 3 rows by a score -> boxes. `seed` makes the score's weights, and those alone."""
    fixed, own = np.random.default_rng(0), np.random.default_rng(seed)
    arrays = {name: fixed.normal(size=size) for name, size in (("w", (WIDTH, WIDTH)), ("b", (WIDTH, 4)))}
    values = {name: x.astype(np.float32) for name, x in arrays.items()}
    values["s"] = own.normal(size=(WIDTH, 5)).astype(np.float32)
    values |= {"k": np.int64([QUERIES]), "last": np.int64([-1]), "wide": np.int64([1, 1, WIDTH])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["memory"]),
        helper.make_node("MatMul", ["memory", "s"], ["classes"]),
        helper.make_node("ReduceMax", ["classes"], ["score"], axes=[-1], keepdims=0),
        helper.make_node("TopK", ["score", "k"], ["best", "picked"], axis=1),
        helper.make_node("Unsqueeze", ["picked", "last"], ["column"]),
        helper.make_node("Tile", ["column", "wide"], ["rows"]),
        helper.make_node("GatherElements", ["memory", "rows"], ["queries"], axis=1),
        helper.make_node("MatMul", ["queries", "b"], ["boxes"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", TOKENS, WIDTH])
    y = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", QUERIES, 4])
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "two_stage", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return io.load(path)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    student, teacher = (two_stage(tmp_path / f"{seed}.onnx", seed) for seed in (1, 2))
    return prepare(student, analyse(student), teacher, TrainingOptions(gamma=0))


def test_what_selects_is_found(tmp_path: Path) -> None:
    model = two_stage(tmp_path / "m.onnx", 1)
    assert selections(model, trainable_prefix(model)) == [("score", "picked")]


def test_on_the_teachers_picks_equal_weights_give_equal_boxes(setup: Setup) -> None:
    x = torch.randn(4, TOKENS, WIDTH)
    taught, alone = setup.teacher(x), setup.student(x)
    assert not torch.allclose(alone["boxes"], taught["boxes"])  # another score selects other rows
    found = setup.views[False, False]([x], setup.handed(taught, apart=False), None)
    torch.testing.assert_close(found["boxes"], taught["boxes"])


def test_indices_survive_being_remembered_as_floats(setup: Setup) -> None:
    taught = {name: value.float() for name, value in setup.teacher(torch.randn(2, TOKENS, WIDTH)).items()}
    (picked,) = setup.handed(taught, apart=False)
    assert picked.dtype == torch.int64


def test_the_score_is_learned_though_no_gradient_goes_through_what_it_picks(setup: Setup) -> None:
    assert [pair.student for pair in setup.outputs] == ["boxes", "score"]
    assert setup.kinds["score"] == "raw"
    x = torch.randn(4, TOKENS, WIDTH)
    taught = setup.teacher(x)
    found = setup.views[False, False]([x], setup.handed(taught, apart=False), None)
    (found["score"] - taught["score"]).square().sum().backward()
    by_name = {setup.student.initializers[name]: p.grad for name, p in setup.student.named_parameters()}
    assert by_name["s"] is not None
    assert by_name["s"].abs().sum() > 0
