"""Activation maps against their formulas, on graphs small enough to know them; and which layer they are taken from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.graph.io import load
from gpusq_onnx.graph.model import Model, from_proto
from gpusq_onnx.graph.norms import norm_outputs
from gpusq_onnx.tasks.boxes import overlaps

pytest.importorskip("torch", reason="needs the extra train")

import torch

from gpusq_onnx.torchgraph.activation import Explainer, grid_of, on_grid, roll_out

ASSETS = Path(__file__).parents[1] / "assets"
RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.standard_normal((4, 3, 2, 2)).astype(np.float32)
HEAD = RANDOM.standard_normal((4, 5)).astype(np.float32)


def graph(nodes: Sequence[NodeProto], outputs: Mapping[str, Sequence[Any]], constants: Mapping[str, Any]) -> Model:
    """A model of images [N, 3, 8, 8]."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "small", [image], values, tensors)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return from_proto(proto, Path())


def pooled() -> Model:
    """Convolution, mean over positions, linear head: Grad-CAM is the CAM that Zhou et al. read off the head."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["row"]),
        helper.make_node("MatMul", ["row", "head"], ["logits"]),
    ]
    return graph(nodes, {"logits": ["N", 5]}, {"kernel": KERNEL, "head": HEAD})


def test_grad_cam_before_a_mean_is_the_heads_own_map() -> None:
    image = RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32)
    explainer = Explainer(pooled(), "image")
    (found,) = explainer.explain({"image": image})
    features = torch.nn.functional.conv2d(torch.from_numpy(image), torch.from_numpy(KERNEL), stride=2)[0].numpy()
    logits = features.mean(axis=(1, 2)) @ HEAD
    heat = np.maximum(np.tensordot(HEAD[:, logits.argmax()], features, axes=1), 0)
    assert explainer.layer == "map" and list(found.maps) == ["gradcam"]
    np.testing.assert_allclose(found.maps["gradcam"], heat / heat.max(), rtol=1e-4, atol=1e-5)
    assert found.seen is not None and found.seen.label == logits.argmax()
    assert found.seen.probability == pytest.approx(np.exp(logits).max() / np.exp(logits).sum(), rel=1e-4)


def detector() -> Model:
    """Four queries, each reading one corner of a 4 x 4 map; boxes of a quarter of the image."""
    places = np.zeros((16, 4), np.float32)
    places[[0, 3, 12, 15], range(4)] = 1
    centres = np.float32([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    boxes = np.concatenate([centres, np.full_like(centres, 0.5)], axis=1)[None]
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"], strides=[2, 2]),
        helper.make_node("Reshape", ["map", "flat"], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "places"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["queries"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["queries", "head"], ["wide"]),
        helper.make_node("Sub", ["wide", "ten"], ["logits"]),
        helper.make_node("ReduceMean", ["queries", "last"], ["one"], keepdims=1),
        helper.make_node("Mul", ["one", "zero"], ["none"]),
        helper.make_node("Add", ["none", "fixed"], ["boxes"]),
    ]
    constants = {"kernel": KERNEL, "head": HEAD, "places": places, "fixed": boxes, "flat": np.int64([0, 4, 16])}
    constants |= {"zero": np.float32(0), "ten": np.float32(10), "last": np.int64([-1])}
    return graph(nodes, {"logits": ["N", 4, 5], "boxes": ["N", 4, 4]}, constants)


def test_a_query_lights_up_where_it_looks_and_another_models_is_found_by_its_box() -> None:
    image = RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32)
    explainer = Explainer(detector(), "image")
    first = explainer.explain({"image": image}, most=2)
    assert len(first) == 2
    for look in first:
        assert look.seen is not None and look.seen.query is not None
        row, column = divmod(look.seen.query, 2)
        lit = {tuple(place) for place in np.argwhere(look.maps["gradcam"] > 0)}
        assert lit <= {(3 * row, 3 * column)}
        assert look.seen.box == pytest.approx((column / 2, row / 2, column / 2 + 0.5, row / 2 + 0.5))
    again = explainer.explain({"image": image}, [look.seen for look in first if look.seen])
    assert [look.seen.query for look in again if look.seen] == [look.seen.query for look in first if look.seen]


def test_overlap_is_intersection_over_union() -> None:
    boxes = np.array([[0, 0, 1, 1], [0.5, 0, 1.5, 1], [2, 2, 3, 3]], dtype=np.float64)
    assert overlaps(boxes, np.array([0.0, 0, 1, 1])).tolist() == pytest.approx([1, 1 / 3, 0])


def test_a_segmenter_shows_its_mask_and_the_map_of_the_largest_class() -> None:
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"], strides=[2, 2]),
        helper.make_node("Transpose", ["map"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["last", "head"], ["classes"]),
        helper.make_node("Transpose", ["classes"], ["logits"], perm=[0, 3, 1, 2]),
        helper.make_node("ArgMax", ["logits"], ["mask"], axis=1, keepdims=0),
    ]
    image = RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32)
    model = graph(nodes, {"logits": ["N", 5, 4, 4]}, {"kernel": KERNEL, "head": HEAD})
    (found,) = Explainer(model, "image").explain({"image": image})
    assert found.seen is not None and found.seen.mask is not None and found.seen.mask.shape == (4, 4)
    assert found.seen.label == np.bincount(found.seen.mask.reshape(-1)).argmax()
    assert found.seen.probability == pytest.approx((found.seen.mask == found.seen.label).mean())


def test_the_last_norm_of_a_class_token_model_is_passed_over() -> None:
    """After the last block only the class token reaches the head; the norm before has positions that count."""
    model = load(ASSETS / "digits_vit.onnx")
    norms = norm_outputs(model)
    explainer = Explainer(model, "pixel_values")
    (found,) = explainer.explain({"pixel_values": RANDOM.standard_normal((1, 3, 32, 32)).astype(np.float32)})
    assert len(norms) == 7 and explainer.layer == norms[-3]
    assert {name: heat.shape for name, heat in found.maps.items()} == {"gradcam": (4, 4), "rollout": (4, 4)}
    assert all(heat.min() >= 0 and heat.max() == 1 for heat in found.maps.values())


def headed(head: np.ndarray) -> Model:
    """Tokens that are pooled before their only norm, as Hiera's are, and a head."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"], strides=[2, 2]),
        helper.make_node("Reshape", ["map", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("Relu", ["tokens"], ["features"]),
        helper.make_node("ReduceMean", ["features", "one"], ["mean"], keepdims=0),
        helper.make_node("LayerNormalization", ["mean", "scale"], ["normed"]),
        helper.make_node("MatMul", ["normed", "head"], ["logits"]),
    ]
    constants = {"kernel": KERNEL, "head": head, "flat": np.int64([0, 4, 16]), "one": np.int64([1])}
    return graph(nodes, {"logits": ["N", 5]}, {**constants, "scale": np.ones(4, np.float32)})


def test_what_is_pooled_has_positions_where_no_norm_has() -> None:
    explainer = Explainer(headed(HEAD), "image")
    (found,) = explainer.explain({"image": RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32)})
    assert explainer.layer == "features" and found.maps["gradcam"].shape == (4, 4)


def test_a_class_that_depends_on_nothing_is_said_so() -> None:
    explainer = Explainer(headed(0 * HEAD), "image")
    with pytest.raises(UnsupportedModelError, match="does not depend on the image"):
        explainer.explain({"image": np.ones((1, 3, 8, 8), np.float32)})


def test_roll_out_follows_the_product() -> None:
    layers = RANDOM.random((3, 2, 5, 5)).astype(np.float32)
    layers /= layers.sum(axis=-1, keepdims=True)
    whole = np.eye(5)
    for heads in layers.astype(np.float64):
        whole = (heads.mean(axis=0) + np.eye(5)) / 2 @ whole
    row = whole[0, 1:] - whole[0, 1:].min()
    found = roll_out([torch.from_numpy(heads) for heads in layers], 1, 2, 2)
    np.testing.assert_allclose(found.reshape(-1), row / row.max(), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((1, 50, 6), 1), ((49, 1, 6), 1), ((1, 6, 7, 7), 1), ((1, 7, 7, 6), 1), ((2, 50, 6), 2), ((1, 1, 49, 6), 1)],
)
def test_any_layout_of_positions_is_read(shape: tuple[int, ...], rows: int) -> None:
    found = on_grid(torch.zeros(shape), (224, 224), rows)
    assert found is not None and found.shape == (7, 7, 6)


def test_what_has_no_positions_is_none() -> None:
    assert on_grid(torch.zeros(1, 768), (224, 224)) is None
    assert on_grid(torch.zeros(1, 3, 6), (224, 224)) is None
    assert grid_of(31, (224, 224)) == (6, 5, 5)


def plain(node: NodeProto) -> Model:
    """One node and a head over its output."""
    nodes = [node, helper.make_node("Flatten", ["made"], ["row"]), helper.make_node("MatMul", ["row", "w"], ["logits"])]
    return graph(nodes, {"logits": ["N", 5]}, {"w": np.ones((192, 5), np.float32)})


def test_a_model_without_a_norm_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedModelError, match="no norm layer is found") as error:
        Explainer(plain(helper.make_node("Relu", ["image"], ["made"])), "image")
    assert "--layer" in str(error.value)
    explainer = Explainer(plain(helper.make_node("Relu", ["image"], ["made"])), "image", layer="made")
    (found,) = explainer.explain({"image": np.ones((1, 3, 8, 8), np.float32)})
    assert found.maps["gradcam"].shape == (8, 8)


def test_what_cannot_be_explained_is_refused() -> None:
    with pytest.raises(UsageError, match="no tensor of this name"):
        Explainer(pooled(), "image", layer="nowhere")
    with pytest.raises(UnsupportedModelError, match="no attention to roll out"):
        Explainer(pooled(), "image", methods=["rollout"])
    features = graph([helper.make_node("Relu", ["image"], ["out"])], {"out": ["N", 3, 8, 8]}, {})
    assert Explainer(features, "image", layer="out").explain({"image": np.ones((1, 3, 8, 8), np.float32)})
    tokens = graph(
        [helper.make_node("Reshape", ["image", "s"], ["out"])], {"out": ["N", 3, 64]}, {"s": np.int64([0, 3, 64])}
    )
    with pytest.raises(UnsupportedModelError, match="no class logits"):
        Explainer(tokens, "image")
