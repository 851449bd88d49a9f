"""permute: outputs stay, 2:4 then keeps more, and channels that something else sees stay in their places."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import NothingMatched, UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.passes.permute import Permute, Permuted
from gpusq_onnx.pipeline.base import Context, PlanContext, PlanRow
from gpusq_onnx.pipeline.details import rows_with
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.sparsity import magnitude
from gpusq_onnx.sparsity.patterns import TWO_FOUR

ASSETS = Path(__file__).parents[1] / "assets"


def _load(proto: onnx.ModelProto, folder: Path) -> Model:
    path = folder / "model.onnx"
    onnx.save_model(proto, str(path))
    return io.load(path)


def _permute(model: Model, **options: object) -> dict[str, PlanRow]:
    """Run the pass as magnitude has it; its rows by weight."""
    permute, structure = Permute(Permute.Options(saliency="magnitude", **options)), analyse(model)
    permute.requires(model, structure)
    plan = permute.plan(model, structure, PlanContext())
    permute.apply(model, structure, plan, Context())
    return {row.tensor: row for row in plan}


class Graph:
    """A small graph, written node by node."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.nodes, self.constants = shape, list[onnx.NodeProto](), list[onnx.TensorProto]()
        self._rng = np.random.default_rng(7)

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int) -> str:
        return self.constant((self._rng.standard_normal(shape) * np.exp(self._rng.standard_normal(shape))).astype("f4"))

    def constant(self, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), f"w{len(self.constants)}"))
        return str(self.constants[-1].name)

    def model(self, *outputs: str) -> onnx.ModelProto:
        nodes = [*self.nodes, *(helper.make_node("Identity", [name], [f"y{i}"]) for i, name in enumerate(outputs))]
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *self.shape])
        y = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(len(outputs))]
        for value in y:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        graph = helper.make_graph(nodes, "small", [x], y, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _heads(g: Graph, tensor: str, heads: int, size: int) -> str:
    split = g("Reshape", tensor, g.constant(np.array([0, 0, heads, size])))
    return str(g("Transpose", split, perm=[0, 2, 1, 3]))


def _attend(g: Graph, q: str, k: str, v: str, heads: int, size: int) -> str:
    weights = g("Softmax", g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    joined = g("Transpose", g("MatMul", weights, v), perm=[0, 2, 1, 3])
    return str(g("Reshape", joined, g.constant(np.array([0, 0, heads * size]))))


def mlp() -> tuple[Graph, str, int]:
    g = Graph(5, 16)
    hidden = g("Gelu", g("Add", g("MatMul", "x", g.weight(16, 32)), g.weight(32)))
    return g, g("Add", "x", g("MatMul", hidden, g.weight(32, 16))), 1


def gemm() -> tuple[Graph, str, int]:
    g = Graph(16)
    hidden = g("Relu", g("Gemm", "x", g.weight(32, 16), g.weight(32), transB=1))
    return g, g("Gemm", hidden, g.weight(16, 32), g.weight(16), transB=1), 1


def swiglu() -> tuple[Graph, str, int]:
    g = Graph(5, 16)
    gate, up = g("MatMul", "x", g.weight(16, 32)), g("MatMul", "x", g.weight(16, 32))
    return g, g("MatMul", g("Mul", g("Mul", gate, g("Sigmoid", gate)), up), g.weight(32, 16)), 1


def packed_swiglu() -> tuple[Graph, str, int]:
    g = Graph(5, 16)
    both = g("Add", g("MatMul", "x", g.weight(16, 64)), g.weight(64))
    gate, up = g("Split", both, outputs=2, axis=-1, num_outputs=2)
    return g, g("MatMul", g("Mul", g("Mul", gate, g("Sigmoid", gate)), up), g.weight(32, 16)), 1


def separate() -> tuple[Graph, str, int]:
    g = Graph(5, 32)
    q, k, v = (_heads(g, g("Add", g("MatMul", "x", g.weight(32, 32)), g.weight(32)), 2, 16) for _ in range(3))
    return g, g("MatMul", _attend(g, q, k, v, 2, 16), g.weight(32, 32)), 1


def grouped_keys() -> tuple[Graph, str, int]:
    g = Graph(5, 32)
    q = _heads(g, g("MatMul", "x", g.weight(32, 32)), 4, 8)
    k, v = (_heads(g, g("MatMul", "x", g.weight(32, 16)), 2, 8) for _ in range(2))
    k, v = (g("Gather", t, g.constant(np.array([0, 0, 1, 1])), axis=1) for t in (k, v))
    return g, g("MatMul", _attend(g, q, k, v, 4, 8), g.weight(32, 32)), 1


def windows() -> tuple[Graph, str, int]:
    """Fused qkv in windows of 2 x 2, as Swin has it, and the windows put together again."""
    g = Graph(4, 4, 32)
    cut = g("Transpose", g("Reshape", "x", g.constant(np.array([-1, 2, 2, 2, 2, 32]))), perm=[0, 1, 3, 2, 4, 5])
    rows = g("Reshape", cut, g.constant(np.array([-1, 4, 32])))
    qkv = g("Add", g("MatMul", rows, g.weight(32, 96)), g.weight(96))
    parts = g("Transpose", g("Reshape", qkv, g.constant(np.array([-1, 4, 3, 2, 16]))), perm=[2, 0, 3, 1, 4])
    q, k, v = (g("Gather", parts, g.constant(np.array(i)), axis=0) for i in range(3))
    joined = g("MatMul", _attend(g, q, k, v, 2, 16), g.weight(32, 32))
    return g, g("Reshape", joined, g.constant(np.array([-1, 4, 4, 32]))), 1


def convolutions() -> tuple[Graph, str, int]:
    """1 x 1, depthwise, 3 x 3: a Mix-FFN and a neck."""
    g = Graph(16, 6, 6)
    wide = g("Conv", "x", g.weight(32, 16, 1, 1), g.weight(32))
    deep = g("Conv", wide, g.weight(32, 1, 3, 3), g.weight(32), group=32, pads=[1, 1, 1, 1])
    mixed = g("Conv", g("Gelu", deep), g.weight(24, 32, 3, 3), g.weight(24), pads=[1, 1, 1, 1])
    return g, g("Conv", g("Relu", mixed), g.weight(16, 24, 1, 1)), 2


def batch_normalised() -> tuple[Graph, str, int]:
    """A BatchNormalization of images as wide as they have channels: its vectors are of channels, not of columns."""
    g = Graph(16, 32, 32)
    hidden = g("Conv", "x", g.weight(32, 16, 1, 1))
    variance = g.constant(np.abs(np.random.default_rng(1).standard_normal(32)).astype("f4") + 0.5)
    normed = g("BatchNormalization", hidden, g.weight(32), g.weight(32), g.weight(32), variance)
    return g, g("Conv", g("Relu", normed), g.weight(16, 32, 1, 1)), 1


def normalised() -> tuple[Graph, str, int]:
    """A LayerNorm and a layer scale on the hidden axis: their vectors move."""
    g = Graph(5, 16)
    hidden = g("MatMul", "x", g.weight(16, 32))
    normed = g("LayerNormalization", g("Mul", hidden, g.weight(32)), g.weight(32), g.weight(32), axis=-1)
    return g, g("MatMul", normed, g.weight(32, 16)), 1


def merging() -> tuple[Graph, str, int]:
    """Swin's patch merging: four copies of the channels, one norm over all."""
    g = Graph(4, 4, 16)
    x = g("MatMul", "x", g.weight(16, 16))

    def every_other(row: int, column: int) -> str:
        start, stop, axes, steps = ([row, column], [4, 4], [1, 2], [2, 2])
        return str(g("Slice", x, *(g.constant(np.array(v)) for v in (start, stop, axes, steps))))

    joined = g("Concat", *(every_other(r, c) for c in (0, 1) for r in (0, 1)), axis=-1)
    normed = g("LayerNormalization", joined, g.weight(64), g.weight(64), axis=-1)
    return g, g("MatMul", normed, g.weight(64, 32)), 1


FORMS = (
    mlp, gemm, swiglu, packed_swiglu, separate, grouped_keys, windows, convolutions, batch_normalised, normalised,
    merging,
)  # fmt: skip


def _check_equal(proto: onnx.ModelProto, model: Model, shape: tuple[int, ...]) -> None:
    feed = {"x": np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)}
    before = Session(proto.SerializeToString(), threads=1).run(feed)
    after = Session(io.to_bytes(model), threads=1).run(feed)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=0, atol=2e-5 * np.abs(values).max())


@pytest.mark.parametrize("form", FORMS)
def test_outputs_stay_and_more_is_kept(form: Callable[[], tuple[Graph, str, int]], tmp_path: Path) -> None:
    graph, output, expected = form()
    proto = graph.model(output)
    model, dense = _load(proto, tmp_path), _load(proto, tmp_path)
    rows = _permute(model, smallest=8, head=True)
    chosen = {name for name, row in rows.items() if row.detail}
    assert len(chosen) == expected, {name: row.reason for name, row in rows.items()}
    for old, new in zip(analyse(dense).sites, analyse(model).sites, strict=True):
        if old.name in chosen:
            weights = (site.read().reshape(-1, site.channels) for site in (old, new))
            shares = [magnitude.energy_kept(w, magnitude.prune(w, TWO_FOUR)) for w in weights]
            assert shares[1] > shares[0]
    _check_equal(proto, model, graph.shape)


def _second_reader(g: Graph, hidden: str) -> list[str]:
    return [g("MatMul", hidden, g.weight(32, 16)), g("ReduceMax", hidden, g.constant(np.array([-1])))]


def _output(g: Graph, hidden: str) -> list[str]:
    return [g("MatMul", hidden, g.weight(32, 16)), hidden]


def _other_order(g: Graph, hidden: str) -> list[str]:
    mixed = g("Add", hidden, g("Gather", hidden, g.constant(np.roll(np.arange(32), 1)), axis=-1))
    return [g("MatMul", mixed, g.weight(32, 16))]


def _shared_vector(g: Graph, hidden: str) -> list[str]:
    vector = g.weight(32)
    return [g("MatMul", g("Mul", hidden, vector), g.weight(32, 16)), g("Add", "x", g("ReduceSum", vector))]


def _table(g: Graph, hidden: str) -> list[str]:
    return [g("MatMul", g("Add", hidden, g.weight(5, 32)), g.weight(32, 16))]


def _foreign(g: Graph, hidden: str) -> list[str]:
    return [g("MatMul", g("Concat", hidden, "x", axis=-1), g.weight(48, 16))]


REFUSALS = (_second_reader, _output, _other_order, _shared_vector, _table, _foreign)


@pytest.mark.parametrize("ending", REFUSALS)
def test_channels_that_something_else_sees_stay(ending: Callable[[Graph, str], list[str]], tmp_path: Path) -> None:
    graph = Graph(5, 16)
    hidden = graph("Relu", graph("MatMul", "x", graph.weight(16, 32)))
    proto = graph.model(*ending(graph, hidden))
    with pytest.raises(NothingMatched):
        _permute(_load(proto, tmp_path), head=True)


@pytest.mark.long
@pytest.mark.parametrize("saliency", ["magnitude", "activation"])
@pytest.mark.parametrize("name", ["digits_vit.onnx", "digits_vit_legacy17.onnx"])
def test_the_embedded_models_stay_as_they_were(name: str, saliency: str) -> None:
    model, dense = io.load(ASSETS / name), io.load(ASSETS / name)
    specs = [InputSpec(s.name, s.dtype, s.shape) for s in model.inputs()]
    source = open_source(DataOptions(path=ASSETS / "digits_train.npz", samples=16), specs)
    permute, structure = Permute(Permute.Options(saliency=saliency)), analyse(model)
    plan = permute.plan(model, structure, PlanContext(data=True))
    context = Context(source=source)
    permute.apply(model, structure, plan, context)
    assert {detail.saliency for _, detail in rows_with(plan, Permuted)} == {saliency}
    assert all(after > before for before, after in context.findings["energy_kept"].values())
    batch = next(iter(source.batches(16)))
    before, after = (Session(io.to_bytes(m), threads=1).run(batch.feed)["logits"] for m in (dense, model))
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 * np.abs(before).max())


def test_sparse_and_quantised_weights_stay(tmp_path: Path) -> None:
    graph, output, _ = mlp()
    model = _load(graph.model(output), tmp_path)
    for site in analyse(model).sites:
        site.write(magnitude.prune(site.read(), TWO_FOUR))
    with pytest.raises(NothingMatched, match="2:4 already"):
        _permute(model, head=True)
    quantised = io.load(ASSETS / "digits_vit.onnx")
    structure = analyse(quantised)
    structure.sites[1].quantised = "int8"
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        Permute(Permute.Options()).requires(quantised, structure)
