"""The prefix runner: the same activations as the whole model, from pieces, with the weights of the moment."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.calibration import prefix
from gpusq_onnx.calibration.prefix import PrefixRunner
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.runtime.ort import Session

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(autouse=True, params=[0, prefix.IN_MEMORY], ids=["in files", "in memory"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "IN_MEMORY", request.param)


@pytest.fixture(params=["digits_vit.onnx", "digits_vit_legacy17.onnx"])
def model(request: pytest.FixtureRequest) -> Model:
    return io.load(ASSETS / request.param)


def _source(model: Model, samples: int = 6) -> Source:
    options = DataOptions(path=ASSETS / "digits_train.npz", samples=samples)
    return open_source(options, [InputSpec(s.name, s.dtype, s.shape) for s in model.inputs()])


def _whole(model: Model, tensor: str, folder: Path) -> np.ndarray:
    io.write_tapped(model, folder / "whole.onnx", [tensor])
    session = Session(folder / "whole.onnx")
    return np.concatenate([session.run(batch.feed)[tensor] for batch in _source(model).batches(4)])


def _stops(model: Model) -> Iterator[tuple[int, str]]:
    for site in analyse(model).sites:
        index = next(i for i, node in enumerate(model.graph.nodes) if node is site.readers[0])
        yield index, site.activation.name


def test_pieces_give_what_the_whole_model_gives(model: Model, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    runner = PrefixRunner(model, scratch)
    assert runner.start(_source(model), 4) == 6
    for position, tensor in _stops(model):
        runner.advance(position)
        found = np.concatenate(list(runner.read(tensor)))
        np.testing.assert_allclose(found, _whole(model, tensor, tmp_path), rtol=1e-4, atol=1e-5)


def test_a_piece_sees_weights_changed_before_it(model: Model, tmp_path: Path) -> None:
    sites = [site for site in analyse(model).sites if site.role in ("qkv", "proj")][:2]
    stops = {tensor: index for index, tensor in _stops(model)}
    (tmp_path / "scratch").mkdir()
    runner = PrefixRunner(model, tmp_path / "scratch")
    runner.start(_source(model), 4)
    runner.advance(stops[sites[0].activation.name])
    before = _whole(model, sites[1].activation.name, tmp_path)
    sites[0].write(np.zeros((sites[0].out, sites[0].k), np.float32))
    after = _whole(model, sites[1].activation.name, tmp_path)
    assert not np.allclose(before, after)
    runner.advance(stops[sites[1].activation.name])
    found = np.concatenate(list(runner.read(sites[1].activation.name)))
    np.testing.assert_allclose(found, after, rtol=1e-4, atol=1e-5)


def test_a_fork_goes_on_with_the_weights_that_are_pinned(model: Model, tmp_path: Path) -> None:
    sites = [site for site in analyse(model).sites if site.role in ("qkv", "proj")][:2]
    stops = {tensor: index for index, tensor in _stops(model)}
    for name in ("ours", "dense"):
        (tmp_path / name).mkdir()
    runner = PrefixRunner(model, tmp_path / "ours")
    runner.start(_source(model), 4)
    runner.advance(stops[sites[0].activation.name])
    fork = runner.fork(tmp_path / "dense")
    fork.pin([sites[0].weight.name])
    tensor = sites[1].activation.name
    dense = _whole(model, tensor, tmp_path)
    sites[0].write(np.zeros((sites[0].out, sites[0].k), np.float32))
    for one in (runner, fork):
        one.advance(stops[tensor])
        assert one.has(tensor) and not one.has("nothing")
    np.testing.assert_allclose(np.concatenate(list(fork.read(tensor))), dense, rtol=1e-4, atol=1e-5)
    assert not np.allclose(np.concatenate(list(runner.read(tensor))), dense)
    assert not fork._pinned  # its last reader is passed


def test_what_is_made_of_weights_is_made_anew_by_each_piece(tmp_path: Path) -> None:
    """x -> MatMul(Transpose(w)) -> y, the Transpose long before its reader."""
    w = np.eye(4, dtype=np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MatMul", ["r", "wt"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    x = np.random.default_rng(0).random((6, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    model = io.load(path)
    source = open_source(DataOptions(path=tmp_path / "x.npy"), [InputSpec("x", np.dtype(np.float32), ("n", 4))])
    (tmp_path / "scratch").mkdir()
    runner = PrefixRunner(model, tmp_path / "scratch")
    runner.start(source, 4)
    runner.advance(2)
    model.graph.tensors()["w"].values = 2 * w
    runner.advance(3)
    np.testing.assert_array_equal(np.concatenate(list(runner.read("m"))), 2 * x)


@pytest.mark.parametrize("place", [0], indirect=True, ids=["in files"])
def test_scratch_holds_one_boundary_and_not_the_history(model: Model, tmp_path: Path) -> None:
    runner = PrefixRunner(model, tmp_path)
    runner.start(_source(model), 4)
    sizes = []
    for position, _ in _stops(model):
        runner.advance(position)
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    assert max(sizes[3:]) < 2.5 * min(sizes[3:-1])


@pytest.mark.parametrize("grows", [False, True])
def test_sizes_that_cross_are_vectors_of_known_length(tmp_path: Path, grows: bool) -> None:
    """A Resize whose sizes are made of shapes before the cut, as torch's opset 17 leaves a pyramid's levels.

    `grows`: a vector made of the batch's size crosses, too; its length differs in the last batch.
    """
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["first"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Expand", ["zero", "batch"], ["zeros"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Concat", ["first", "far"], ["sizes"], axis=0),
        helper.make_node("Resize", ["r", "", "", "sizes"], ["large"], mode="nearest"),
        helper.make_node("Reshape", ["zeros" if grows else "zero", "column"], ["offsets"]),
        helper.make_node("Cast", ["offsets"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["large", "floats"], ["y"]),
    ]
    constants = {"zero": [0], "one": [1], "two": [2], "far": [6, 6], "column": [-1, 1, 1, 1]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, None, None]) for name in ("x", "y")]
    given = [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], given)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    x = np.random.default_rng(0).random((6, 1, 3, 3), np.float32)
    np.save(tmp_path / "x.npy", x)
    source = open_source(DataOptions(path=tmp_path / "x.npy"), [InputSpec("x", np.dtype(np.float32), ("n", 1, 3, 3))])
    (tmp_path / "scratch").mkdir()
    runner = PrefixRunner(io.load(path), tmp_path / "scratch")
    runner.start(source, 4)
    runner.advance(5)
    runner.advance(9)
    np.testing.assert_array_equal(np.concatenate(list(runner.read("large"))), x.repeat(2, 2).repeat(2, 3))
