"""The patch embedding as a product: the same values, and a site that pruning and quantising can include."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from tools.zoo.checker import weights_of

ASSETS = Path(__file__).parents[1] / "assets"
BOTH_ENDS = "patch-matmul,prune24{head=true,method=magnitude,patch=true,smallest=8},qdq-int8{head=true,patch=true}"


def embedding(
    path: Path, *, size: tuple[int | str, int | str] = (24, 20), tile: tuple[int, int] = (4, 5), bias: bool = True,
    channels: int = 3, **attrs: object,
) -> Path:  # fmt: skip
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, channels, *tile)).astype(np.float32)
    initializers = [numpy_helper.from_array(weight, "w")]
    initializers += [numpy_helper.from_array(random.standard_normal(16).astype(np.float32), "b")] if bias else []
    names = ["x", "w", "b"][: 3 if bias else 2]
    node = helper.make_node("Conv", names, ["y"], name="proj", **{"strides": list(tile), **attrs})
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


@pytest.mark.parametrize(("tile", "size"), [((4, 5), (24, 20)), ((4, 4), (8, 8)), ((16, 16), (32, 16))])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [3, 1])
def test_it_computes_the_same(
    tmp_path: Path, tile: tuple[int, int], size: tuple[int, int], bias: bool, channels: int
) -> None:
    path = embedding(tmp_path / "m.onnx", tile=tile, size=size, bias=bias, channels=channels)
    manager.run(path, tmp_path / "out.onnx", parse("patch-matmul"), RunOptions(DataOptions()))
    (site,) = analyse(io.load(tmp_path / "out.onnx")).sites
    assert (site.op, site.role, site.k, site.bias is not None) == (
        "MatMul",
        "patch_embed",
        channels * np.prod(tile),
        bias,
    )
    for batch in (1, 3):  # the file declares any batch
        x = np.random.default_rng(batch).standard_normal((batch, channels, *size)).astype(np.float32)
        before, after = run(path, x), run(tmp_path / "out.onnx", x)
        assert after.shape == before.shape
        np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size": ("h", 20)}, "height is open"),
        ({"size": (24, "w")}, "width is open"),
        ({"size": (25, 20)}, "do not divide"),
        ({"pads": [4, 0, 0, 0]}, "pads its image"),
        ({"dilations": [1, 2], "size": (24, 40)}, "dilation"),
        ({"strides": [2, 5]}, "no Conv whose stride is its kernel"),
    ],
)
def test_what_cannot_be_rewritten_says_why(tmp_path: Path, change: dict, why: str) -> None:
    path = embedding(tmp_path / "m.onnx", **change)
    with pytest.raises(NothingMatched, match=why):
        manager.run(path, tmp_path / "out.onnx", parse("patch-matmul"), RunOptions(DataOptions()))
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".onnx"] == ["m.onnx"]


def shared(path: Path, strides: list[int]) -> Path:
    """Two images, each cut by a Conv of its own, with one weight."""
    made = onnx.load(embedding(path))
    image = helper.make_tensor_value_info("x2", TensorProto.FLOAT, ["n", 3, 24, 20])
    made.graph.input.append(image)
    made.graph.node.append(helper.make_node("Conv", ["x2", "w", "b"], ["y2"], name="proj2", strides=strides))
    made.graph.output.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, None))
    onnx.save(made, path)
    return path


def test_a_weight_that_a_conv_of_overlapping_patches_reads_stays(tmp_path: Path) -> None:
    path = shared(tmp_path / "m.onnx", [2, 5])
    with pytest.raises(NothingMatched) as caught:
        manager.run(path, tmp_path / "out.onnx", parse("patch-matmul"), RunOptions(DataOptions()))
    assert "with strides of [2, 5]" in str(caught.value.rows[0].reason)


def test_a_weight_of_two_convs_is_one_matrix(tmp_path: Path) -> None:
    path = shared(tmp_path / "m.onnx", [4, 5])
    found = manager.run(path, tmp_path / "out.onnx", parse("patch-matmul"), RunOptions(DataOptions()))
    (site,) = analyse(io.load(tmp_path / "out.onnx")).sites
    assert len(site.readers) == 2
    assert found.after.total["parameters"] == found.before.total["parameters"]


@pytest.mark.long
@pytest.mark.parametrize("export", ["digits_vit", "digits_vit_legacy17"])
def test_both_ends_are_included_where_they_are_asked_for(tmp_path: Path, export: str) -> None:
    data = DataOptions(path=ASSETS / "digits_train.npz", samples=8)
    found = manager.run(ASSETS / f"{export}.onnx", tmp_path / "all.onnx", parse(BOTH_ENDS), RunOptions(data))
    weights = weights_of(tmp_path / "all.onnx")
    assert len(weights) == 14
    assert all(weight.element == "int8" and weight.on_grid and "2:4" in weight.rules for weight in weights)
    assert {site.role for site in analyse(io.load(tmp_path / "all.onnx")).sites} >= {"patch_embed", "qkv", "head"}
    planned = manager.plan(ASSETS / f"{export}.onnx", parse(BOTH_ENDS), RunOptions(data))
    assert [step.rows for step in planned.steps] == [step.rows for step in found.steps]
    total = found.after.total
    assert total["sparse_macs"] == total["dense_macs"] / 2


def test_without_the_options_both_ends_stay(tmp_path: Path) -> None:
    passes = parse("patch-matmul,prune24{method=magnitude},qdq-int8")
    manager.run(ASSETS / "digits_vit.onnx", tmp_path / "out.onnx", passes, RunOptions(DataOptions(samples=4)))
    floats = [weight for weight in weights_of(tmp_path / "out.onnx") if not weight.element]
    assert [weight.rules for weight in floats] == [(), ()]
    assert {weight.name for weight in floats} == {"patch_embed.weight_matrix", "head.weight"}
