"""Scripts whose feeds are one run each: inputs without a batch in common are trained on as the script made them."""

from collections.abc import Iterator
from pathlib import Path

import classroom
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from gpusq_onnx.data.opening import open_source  # noqa: E402
from gpusq_onnx.data.options import DataOptions  # noqa: E402
from gpusq_onnx.data.source import Batch, Source, WholeFeeds, whole_feed  # noqa: E402
from gpusq_onnx.errors import UnsupportedDataError  # noqa: E402
from gpusq_onnx.graph import io  # noqa: E402
from gpusq_onnx.graph.structure import analyse  # noqa: E402
from gpusq_onnx.learn.compare import clean  # noqa: E402
from gpusq_onnx.learn.feed import Feed, Part  # noqa: E402
from gpusq_onnx.learn.planning import sizes  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402
from gpusq_onnx.learn.setup import prepare  # noqa: E402
from gpusq_onnx.pipeline import manager  # noqa: E402
from gpusq_onnx.pipeline.grammar import parse  # noqa: E402
from gpusq_onnx.pipeline.run import RunOptions  # noqa: E402
from gpusq_onnx.runtime.ort import Session  # noqa: E402
from gpusq_onnx.torchgraph import network as torch_network  # noqa: E402
from gpusq_onnx.torchgraph.convert import convert  # noqa: E402

SIDE, TOKENS = 32, 4
FEEDS = 6
Shape = tuple[int | str, ...]
Arrays = dict[str, NDArray[np.float32]]

IMAGE: Shape = (1, TOKENS, SIDE)
MODELS: dict[str, tuple[dict[str, Shape], str]] = {
    "two towers": ({"x": IMAGE, "other": (2, TOKENS, SIDE)}, "MatMul"),
    "the longer one first": ({"other": (2, TOKENS, SIDE), "x": IMAGE}, "MatMul"),
    "a shared table": ({"x": ("batch", TOKENS, SIDE), "other": (TOKENS, SIDE)}, "Add"),
    "a number": ({"x": IMAGE, "other": ()}, "Mul"),
    "a number first": ({"other": (), "x": ("batch", TOKENS, SIDE)}, "Mul"),
}


def model_of(kind: str, folder: Path) -> Path:
    """y = (relu(x w1) w2) joined with the other input: multiplied by what a second tower makes of it, or added."""
    inputs, op = MODELS[kind]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["i"]),
    ]
    side = "other"
    if op == "MatMul":
        nodes += [
            helper.make_node("MatMul", ["other", "w3"], ["t"]),
            helper.make_node("ReduceMean", ["t", "one"], ["m"], keepdims=0),
            helper.make_node("Transpose", ["m"], ["turned"], perm=[1, 0]),
        ]
        side = "turned"
    nodes.append(helper.make_node(op, ["i", side], ["y"]))
    rng = np.random.default_rng(0)
    constants = {name: rng.standard_normal((SIDE, SIDE)).astype(np.float32) / 6 for name in ("w1", "w2", "w3")}
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    stored.append(numpy_helper.from_array(np.array([1]), "one"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", TOKENS, 2 if op == "MatMul" else SIDE])],
        stored,
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def script_of(kind: str, folder: Path, rows: int = 1) -> Path:
    """Feeds of the declared shapes; an open batch is of `rows`."""
    inputs, _ = MODELS[kind]
    shapes = {name: [rows if isinstance(dim, str) else dim for dim in shape] for name, shape in inputs.items()}
    (folder / "feeds.py").write_text(f"""
import numpy as np
def load_data():
    rng = np.random.default_rng(1)
    for _ in range({FEEDS}):
        yield {{name: np.float32(rng.standard_normal(shape)) for name, shape in {shapes!r}.items()}}
""")
    return folder / "feeds.py"


def shapes_of(feed: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_a_network_runs_a_whole_feed_as_onnxruntime_does(kind: str, tmp_path: Path) -> None:
    path = model_of(kind, tmp_path)
    model = io.load(path)
    source = open_source(DataOptions(path=script_of(kind, tmp_path, rows=3)), model.inputs())
    network, session = convert(model), Session(path, optimize=False)
    for batch in source.batches(1):
        found = network(*(torch.from_numpy(batch.feed[name]) for name in network.inputs))["y"].detach().numpy()
        np.testing.assert_allclose(found, session.run(batch.feed)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("passes", ["prune24{smallest=32 head=true},distill", "qdq-int8{smallest=32 head=true},qat"])
@pytest.mark.parametrize("kind", MODELS)
def test_training_takes_the_feeds_as_they_are(
    kind: str, passes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, script, fed = model_of(kind, tmp_path), script_of(kind, tmp_path, rows=2), list[Part]()
    handed_over = Part.tensors

    def spied(self: Part, names: list[str], device: object) -> object:
        fed.append(self)
        return handed_over(self, names, device)

    monkeypatch.setattr(Part, "tensors", spied)
    options = "{steps=2 batch=4 lr=1e-2 precision=float32 device=cpu}"
    outcome = manager.run(path, tmp_path / "out.onnx", parse(passes + options), RunOptions(DataOptions(path=script)))
    wanted = [batch.feed for batch in open_source(DataOptions(path=script), io.load(path).inputs()).batches(1)]
    assert len(fed) >= 4
    for number, part in enumerate(fed):
        for name, array in wanted[number % FEEDS].items():
            np.testing.assert_array_equal(part.feed[name], array)
    assert any("feeds are run one by one, as they are" in warning for warning in outcome.warnings)


def any_size(folder: Path) -> Path:
    """y = (relu(v w1)) w2 with v the tokens [batch, n, 32] cut into heads by a Reshape that asks for n, and a mean."""
    nodes = [
        helper.make_node("Shape", ["x"], ["count"], start=1, end=2),
        helper.make_node("Concat", ["zero", "count", "heads"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["v"]),
        helper.make_node("ReduceSum", ["v", "two"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["s", "w1"], ["h"]),
        helper.make_node("Cast", ["count"], ["n"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["h", "n"], ["d"]),
        helper.make_node("Relu", ["d"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(rng.standard_normal((SIDE, SIDE)).astype(np.float32), name) for name in ("w1", "w2")
    ]
    ints = {"zero": [0], "two": [2], "heads": [2, SIDE]}
    stored += [numpy_helper.from_array(np.array(value), name) for name, value in ints.items()]
    shape = ["batch", "tokens", 2 * SIDE]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:2], SIDE])
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    (folder / "feeds.py").write_text(f"""
import numpy as np
def load_data():
    rng = np.random.default_rng(1)
    for tokens in (4, 6, 4, 9):
        yield {{"x": rng.standard_normal((1, tokens, {2 * SIDE})).astype(np.float32)}}
""")
    return path


def test_feeds_of_several_sizes_are_run_as_onnxruntime_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that the graph asks for are numbers in a network: each size has one, and all have the same parameters."""
    monkeypatch.setattr(torch_network, "MOST", 1)
    path = any_size(tmp_path)
    model, session = io.load(path), Session(path, optimize=False)
    source = open_source(DataOptions(path=tmp_path / "feeds.py"), model.inputs())
    assert source.whole is not None and source.whole.resized
    setup = prepare(model, analyse(model), model, TrainingOptions(gamma=0), sizes(model, source))
    for _ in range(2):
        for batch in source.batches(1):
            x, wanted = torch.from_numpy(batch.feed["x"]), session.run(batch.feed)["y"]
            for found in (setup.views[False, False]([x], [], None)["y"], setup.teacher(x)["y"]):
                np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
    setup.student.zero_grad()
    setup.student(torch.ones(2, 7, 2 * SIDE))["y"].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in setup.student.parameters())


@pytest.mark.parametrize(
    ("passes", "lr"),
    [("prune24{smallest=32 head=true},distill", 1e-2), ("qdq-int8{smallest=32 head=true},qat", 1e-5)],
)
def test_feeds_of_several_sizes_are_trained_on(passes: str, lr: float, tmp_path: Path) -> None:
    path = any_size(tmp_path)
    options = f"{{steps=8 batch=4 lr={lr} tokens=0.5 precision=float32 device=cpu}}"
    data = RunOptions(DataOptions(path=tmp_path / "feeds.py"))
    outcome = manager.run(path, tmp_path / "out.onnx", parse(passes + options), data)
    assert any("x differs in size: [1, 4, 64] and [1, 6, 64]" in warning for warning in outcome.warnings)
    soft = outcome.steps[-1].findings["soft"]
    assert soft["after"] < soft["before"]


class Whole(Source):
    """Feed i holds the number i, in one row of one input and two of the other."""

    kind, random_access = "script", False

    def __init__(self, count: int = 7) -> None:
        self.count = count

    @property
    def whole(self) -> WholeFeeds:
        return WholeFeeds(self.count, "axis 0 differs: 1 and 2")

    def __len__(self) -> int:
        return self.count

    def batches(self, batch: int) -> Iterator[Batch]:
        for number in range(self.count):
            yield whole_feed({name: np.full((rows, 2), number, np.float32) for name, rows in (("a", 1), ("b", 2))})

    def digest(self) -> str:
        return ""


def numbers(feed: Feed, start: int = 0) -> list[list[int]]:
    steps = list(feed.steps(start, feed.total))
    assert all(shapes_of(part.feed) == {"a": (1, 2), "b": (2, 2)} for parts in steps for part in parts)
    return [[int(part.feed["b"][1, 0]) for part in parts] for parts in steps]


def test_a_step_adds_feeds_up_to_the_batch() -> None:
    feed = Feed(Whole(), TrainingOptions(batch=3, epochs=2), 0)
    assert (feed.rows, feed.per_epoch, feed.total) == (3, 2, 4)
    assert numbers(feed) == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]]
    assert numbers(feed, 2) == [[6, 0, 1], [2, 3, 4]], "a run that goes on where it stopped"
    assert any("axis 0 differs: 1 and 2" in note for note in feed.notes)
    small = Feed(Whole(2), TrainingOptions(batch=8, epochs=1), 0)
    assert (small.rows, small.per_epoch) == (2, 1)


def test_processes_share_the_feeds_of_a_step() -> None:
    settings = TrainingOptions(batch=4, epochs=1)
    whole = numbers(Feed(Whole(), settings, 0))
    shares = [numbers(Feed(Whole(), settings, 0, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole
    with pytest.raises(UnsupportedDataError, match="too few feeds"):
        Feed(Whole(1), settings, 0, 0, 2)


def test_student_and_teacher_are_compared_on_whole_feeds() -> None:
    found = list(clean(Whole(), 5))
    assert [int(feed["b"][1, 0]) for feed, _ in found] == [0, 1, 2, 3, 4]
    assert all(rows == 1 and shapes_of(feed) == {"a": (1, 2), "b": (2, 2)} for feed, rows in found)


def test_thin_views_are_left_out_where_sizes_differ() -> None:
    settings = TrainingOptions(tokens=0.5, blockwise=0.5)
    setup = classroom.setup(classroom.pruned(), settings)
    assert setup.tokens is not None and any(thin for _, thin in setup.views)
    plain = setup.on_all_tokens()
    assert plain.tokens is None and plain.thin_teacher is None and not any(thin for _, thin in plain.views)
    assert plain.notes[-1] == "all tokens are trained on: the inputs differ in size"
    assert plain.on_all_tokens() is plain
