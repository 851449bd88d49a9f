"""`cam`: models side by side, from Python and from the command line, and what it writes."""

import errno
import json
import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

import gpusq_onnx
from gpusq_onnx.cli import console, main
from gpusq_onnx.data.encode import shown
from gpusq_onnx.errors import EnvironmentLacking, UnsupportedModelError, UsageError
from gpusq_onnx.graph.io import load
from gpusq_onnx.report.page.activation import Activations, agreement
from gpusq_onnx.tasks.kinds import image_shape
from gpusq_onnx.workflows.cam import draw, place_of, require_libraries
from gpusq_onnx.workflows.outlines import Outlines

pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("jinja2", reason="needs the extra report")
pytest.importorskip("matplotlib", reason="needs the extra report")

ASSETS = Path(__file__).parents[1] / "assets"
MODEL, DATA = ASSETS / "digits_vit.onnx", ASSETS / "digits_test.npz"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Dense, sparse, sparse and quantised."""
    folder = tmp_path_factory.mktemp("models")
    made = [MODEL, folder / "sparse.onnx", folder / "small.onnx"]
    for passes, path in zip(("prune24", "prune24,qdq-int8"), made[1:], strict=True):
        gpusq_onnx.compress(MODEL, passes, data=DATA, data_options={"samples": 16}, output=path)
    return made


@pytest.fixture(scope="module")
def found(models: list[Path]) -> Activations:
    return gpusq_onnx.cam(*models, data=DATA, data_options={"samples": 8})


@pytest.mark.long
def test_every_model_is_asked_for_the_first_ones_class(found: Activations) -> None:
    assert len(found.examples) == 8 and found.methods == ["gradcam", "rollout"]
    assert len(set(found.layers)) == 1
    for example in found.examples:
        assert example.pixels.shape == (160, 160, 3)
        first, *others = example.views
        assert first.same and first.agreement == pytest.approx({"gradcam": 1.0, "rollout": 1.0})
        for view in others:
            assert view.same == (view.label == first.label)
            assert {name: heat.shape for name, heat in view.maps.items()} == dict.fromkeys(found.methods, (160, 160))
            for name, value in view.agreement.items():
                assert value == pytest.approx(agreement(view.maps[name], first.maps[name]))
    order = [example.agreement for example in found.examples]
    assert order == sorted(order) and order[0] < 1


def test_predictions_are_the_models_own(found: Activations, models: list[Path]) -> None:
    """The classes are those that `check` counts: agreement on the same eight images."""
    result = gpusq_onnx.check(*models[::2], data=DATA, data_options={"samples": 8})
    same = np.mean([example.views[2].same for example in found.examples])
    assert same == pytest.approx(result.comparison.top1_agreement, abs=0.13)  # one image on the edge


def test_the_same_models_agree() -> None:
    found = gpusq_onnx.cam(MODEL, MODEL, data=DATA, data_options={"samples": 2}, methods=["gradcam"])
    assert found.names == ["1 digits_vit", "2 digits_vit"] and found.methods == ["gradcam"]
    assert [example.agreement for example in found.examples] == pytest.approx([1, 1])


def test_the_ends_are_chosen(found: Activations) -> None:
    assert found.chosen(4) == [*found.examples[:2], *found.examples[-2:]]
    assert found.chosen(3) == [*found.examples[:2], *found.examples[-1:]]
    assert found.chosen(99) == list(found.examples)


def test_agreement_is_a_correlation() -> None:
    x = np.random.default_rng(0).random((2, 6, 6))
    assert agreement(x[0], x[1]) == pytest.approx(np.corrcoef(x[0].ravel(), x[1].ravel())[0, 1])
    assert agreement(x[0], 3 * x[0] + 1) == pytest.approx(1)
    assert agreement(0 * x[0], 0 * x[0]) == 1 and agreement(0 * x[0], x[0]) == 0


@pytest.mark.long
def test_a_folder_a_page_and_a_picture(found: Activations, tmp_path: Path) -> None:
    files = draw(found, tmp_path / "maps", 2)
    assert files[0] == tmp_path / "maps" / "index.html" and all(file.is_file() for file in files)
    assert len(files) == 1 + 2 * (1 + 3 * 2)
    assert {file.read_bytes()[:3] for file in files[1:]} == {b"\xff\xd8\xff"}
    page = files[0].read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 14 and "agrees least" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert draw(found, tmp_path / "one.png", 2) == [tmp_path / "one.png"]
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert draw(found, tmp_path / "one.html", 1) == [tmp_path / "one.html"]


def test_the_command_says_what_it_wrote(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cam", *models, "--data", DATA, "--samples", "3", "--method", "gradcam", "-o", tmp_path / "cam.html"]
    assert main([*map(str, words), "--json", str(tmp_path / "cam.json")]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"\n{tmp_path / 'cam.html'}\n") and "\nsparse  " in said
    document = json.loads((tmp_path / "cam.json").read_text())
    assert [len(example["views"]) for example in document["examples"]] == [3] * 3
    assert document["written"] == [str(tmp_path / "cam.html")]
    assert len(said.splitlines()) <= 60


def test_no_picture_is_left_without_the_json(models: list[Path], tmp_path: Path) -> None:
    words = ["cam", models[0], "--data", DATA, "--samples", "1", "--method", "gradcam", "-o", tmp_path / "new/cam.html"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "write_json", _disk_is_full)
        assert main([*map(str, words), "--json", str(tmp_path / "c.json")]) == 5
    assert not list(tmp_path.iterdir())


def _disk_is_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_pictures_go_where_their_name_says(tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    for name in ("maps", "maps.png", "maps.HTM", "maps.jpg/", str(tmp_path / "v1.2")):
        assert place_of(name) == Path(name)
    with pytest.raises(UsageError, match="not written as"):
        place_of("cam.xyz")


@pytest.mark.parametrize(("missing", "extras"), [("torch", "train"), ("jinja2", "report"), ("", "report,train")])
def test_all_extras_are_asked_for_at_once(missing: str, extras: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_onnx.workflows.cam.find_spec", lambda name: None if missing in ("", name) else "there")
    with pytest.raises(EnvironmentLacking) as caught:
        require_libraries()
    assert caught.value.details["next"] == f"pip install 'gpusq-onnx[{extras}]'"


def test_what_cannot_be_drawn_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="maps are drawn on example images"):
        gpusq_onnx.cam(MODEL)
    with pytest.raises(UsageError, match="no method 'lime'"):
        gpusq_onnx.cam(MODEL, data=DATA, methods=["lime"])
    with pytest.raises(UsageError, match="no model"):
        gpusq_onnx.cam(data=DATA)
    words = ["cam", str(MODEL), "--data", str(DATA), "--samples", "1"]
    (tmp_path / "file").write_text("")
    assert main([*words, "-o", str(tmp_path / "file" / "cam.html")]) == 2
    assert main([*words, "-o", str(tmp_path / "file")]) == 2
    assert main([*words, "-o", str(MODEL)]) == 2
    assert main([*words, "--layer", "nowhere", "-o", str(tmp_path / "x.html")]) == 2
    assert main([*words, "--method", "lime", "-o", str(tmp_path / "x.html")]) == 2
    assert main([*words[:2], "-o", str(tmp_path / "x.html")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_without_a_norm_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("ReduceMax", ["image", "axes"], ["logits"], keepdims=0)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "none", [image], [logits], [axes])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "none.onnx")
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 32, 32), np.float32))
    with pytest.raises(UnsupportedModelError, match="no norm layer"):
        gpusq_onnx.cam(tmp_path / "none.onnx", data=tmp_path / "x.npy")
    assert main(["cam", str(tmp_path / "none.onnx"), "--data", str(tmp_path / "x.npy")]) == 3
    said = capsys.readouterr().err
    assert "no norm layer is found" in said and "next: name a tensor with --layer" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.onnx", "x.npy"]


def with_masks(path: Path, side: int, *, listed: bool) -> Path:
    """Four objects, one a quarter of the image, with masks: in DETR's form, or as Mask R-CNN lists them."""
    random = np.random.default_rng(0)
    kernel, head = (random.standard_normal(shape).astype(np.float32) for shape in ((4, 3, 2, 2), (64, 5)))
    corners = np.float32([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
    centres = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    masks = np.full((4, 8, 8), -1.0, np.float32)
    for place, (row, column) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        masks[place, row : row + 4, column : column + 4] = 1
    float_, integer, value = TensorProto.FLOAT, TensorProto.INT64, helper.make_tensor_value_info
    constants = {"kernel": kernel, "zero": np.float32(0), "axes": np.int64([1, 2])}
    nodes = [helper.make_node("Conv", ["image", "kernel"], ["map"], strides=[2, 2])]
    if listed:
        constants |= {"corners": side * corners, "ids": np.int64([1, 2, 3, 4]), "sure": np.float32([0.9] * 4)}
        constants["likely"] = np.repeat(np.repeat(masks > 0, side // 8, 1), side // 8, 2).astype(np.float32)[:, None]
        nodes += [helper.make_node("ReduceMean", ["map"], ["mean"], keepdims=0)]
        nodes += [helper.make_node("Mul", ["mean", "zero"], ["none"])]
        for name, given in (("boxes", "corners"), ("scores", "sure"), ("masks", "likely")):
            nodes.append(helper.make_node("Add", ["none", given], [name]))
        nodes.append(helper.make_node("Identity", ["ids"], ["labels"]))
        shapes = {"boxes": [4, 4], "labels": [4], "scores": [4], "masks": [4, 1, side, side]}
    else:
        constants |= {"head": head, "fixed": centres[None], "ten": np.float32(10), "flat": np.int64([0, 4, -1])}
        constants["drawn"] = masks[None]
        nodes += [
            helper.make_node("Reshape", ["map", "flat"], ["tokens"]),
            helper.make_node("MatMul", ["tokens", "head"], ["wide"]),
            helper.make_node("Sub", ["wide", "ten"], ["logits"]),
            helper.make_node("ReduceMean", ["tokens"], ["mean"], axes=[2], keepdims=1),
            helper.make_node("Mul", ["mean", "zero"], ["none"]),
            helper.make_node("Add", ["none", "fixed"], ["boxes"]),
            helper.make_node("Unsqueeze", ["none", "last"], ["wider"]),
            helper.make_node("Add", ["wider", "drawn"], ["masks"]),
        ]
        constants["last"] = np.int64([3])
        shapes = {"logits": ["N", 4, 5], "boxes": ["N", 4, 4], "masks": ["N", 4, 8, 8]}
    outputs = [value(name, integer if name == "labels" else float_, shape) for name, shape in shapes.items()]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    image = value("image", float_, [1 if listed else "N", 3, side, side])
    made = helper.make_graph(nodes, "masks", [image], outputs, tensors)
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_objects_masks_are_drawn_and_compared(tmp_path: Path) -> None:
    model = with_masks(tmp_path / "detr.onnx", 16, listed=False)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).random((2, 3, 16, 16)).astype(np.float32))
    found = gpusq_onnx.cam(model, model, data=tmp_path / "x.npy")
    assert len(found.examples) == 4
    for example in found.examples:
        for view in example.views:
            x0, y0, x1, y1 = (round(160 * edge) for edge in view.box)
            assert view.outline[y0 + 9 : y1 - 9, x0 + 9 : x1 - 9].all() and view.outline.mean() == pytest.approx(
                0.25, abs=0.1
            )
            assert view.agreement["mask"] == 1
    files = draw(found, tmp_path / "maps", 4)
    assert sum("-mask.jpg" in file.name for file in files) == 8


def test_listed_objects_are_found_by_their_boxes(tmp_path: Path) -> None:
    path = with_masks(tmp_path / "rcnn.onnx", 16, listed=True)
    objects = Outlines(path, load(path), (16, 16))
    feed = {"image": np.zeros((1, 3, 16, 16), np.float32)}
    whole, none, nowhere = objects.find(feed, [(0.5, 0, 1, 0.45), None, (0.25, 0.25, 0.75, 0.75)])
    assert none is None and nowhere is None
    assert whole[:8, 8:].all() and whole.sum() == 64


def test_coordinates_are_no_image() -> None:
    assert image_shape([(1, 1, 2, 2), (1, 3, 256, 256)]) == (1, 3, 256, 256)
    assert image_shape([("B", "P", "N", 2), (1, 1, 2)]) == ()
    assert image_shape([("N", "H", "W", 3)]) == ("N", "H", "W", 3)


def test_pixels_come_back_from_the_models_input() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    x = ((pixels / 255 - mean) / std).astype(np.float32)
    way = {"layout": "NCHW", "channels": "BGR", "mean": mean, "std": std}
    assert (shown(x.transpose(2, 0, 1)[::-1], way) == pixels).all()
    assert (shown(pixels, {"layout": "NHWC", "channels": "RGB", "mean": None, "std": None}) == pixels).all()
    grey = shown(np.linspace(-1, 1, 20, dtype=np.float32).reshape(1, 4, 5), None)
    assert grey.shape == (4, 5, 3) and grey.min() == 0 and grey.max() == 255
