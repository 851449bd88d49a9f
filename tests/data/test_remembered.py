"""Preprocessing that was not given: from the model's metadata, from files beside it, by a preset's name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import for_input
from gpusq_onnx.data.presets import PRESETS
from gpusq_onnx.data.remembered import KEY, record, settle
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import UsageError

SPEC = InputSpec("x", np.dtype(np.float32), ("batch", 3, 224, 224))
VIT = {"resize": 248, "mean": 0.5, "std": 0.5}


def remembered(**values: Any) -> dict[str, str]:
    """The metadata of a model that was calibrated with these options."""
    return {KEY: record(for_input(DataOptions.from_values(values), SPEC).describe())}


def said(options: DataOptions) -> dict[str, Any]:
    """What is done to each image."""
    return for_input(options, SPEC).describe()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_stands_for_its_values_and_what_is_given_wins(name: str):
    found, values = said(DataOptions.from_values({"preset": name})), PRESETS[name].values
    assert found["interpolation"] == values["interpolation"]
    assert found["fit"] == values.get("fit", "crop")
    assert PRESETS[name].source and PRESETS[name].models
    given = said(DataOptions.from_values({"preset": name, "mean": "0.1", "interpolation": "lanczos"}))
    assert given["mean"] == [0.1] * 3 and given["interpolation"] == "lanczos"


@pytest.mark.parametrize(("name", "resize"), [("imagenet", 256), ("deit", 248), ("clip", 224), ("siglip", None)])
def test_the_resize_of_a_preset_follows_from_the_input(name: str, resize: int | None):
    assert said(DataOptions.from_values({"preset": name}))["resize"] == resize


def test_a_resize_beats_the_ratio_of_a_preset():
    assert said(DataOptions.from_values({"preset": "clip", "resize": 300}))["resize"] == 300


def test_an_unknown_preset_names_those_that_there_are():
    with pytest.raises(UsageError, match="no data preset 'klip'; there are imagenet"):
        DataOptions.from_values({"preset": "klip"})


def test_a_preset_can_be_written_in_a_file_and_comes_back(tmp_path: Path):
    options = DataOptions.from_values({"preset": "clip", "samples": 3})
    (tmp_path / "data.toml").write_text(options.to_toml())
    assert DataOptions.from_toml(tmp_path / "data.toml") == options


def test_what_was_remembered_is_taken_and_named():
    settled = settle(DataOptions(path=Path("images"), samples=3), [{}, remembered(**VIT)], None)
    assert said(settled.options) == said(DataOptions.from_values(VIT))
    assert settled.options.samples == 3
    assert (settled.taken_from, settled.warnings) == ("the model's metadata", ())


def test_the_same_given_again_is_no_difference():
    settled = settle(DataOptions.from_values({"path": "images", **VIT}), [remembered(**VIT)], None)
    assert settled.warnings == ()


def test_something_else_given_wins_and_is_warned_of():
    settled = settle(DataOptions.from_values({"path": "images", "mean": 0.4}), [remembered(**VIT)], None)
    assert said(settled.options)["mean"] == [0.4] * 3 and said(settled.options)["resize"] == 248
    assert "mean 0.4 is given, the model's metadata says 0.5,0.5,0.5" in settled.warnings[0]


def test_a_stretch_given_for_a_remembered_crop_goes_through():
    settled = settle(DataOptions(path=Path("images"), fit="stretch"), [remembered(**VIT)], None)
    assert said(settled.options)["fit"] == "stretch" and said(settled.options)["mean"] == [0.5] * 3
    assert "fit stretch is given" in settled.warnings[0]


@pytest.mark.parametrize("path", ["x.npz", "x.npy", "load.py", "load.py:feeds"])
def test_arrays_go_in_as_they_are(path: str):
    options = DataOptions(path=Path(path))
    assert settle(options, [remembered(**VIT)], None).options is options


@pytest.mark.parametrize("text", ["[", "3", "{}", '{"mean": "red"}', '{"fit": "crop", "crop": 5}', '{"std": [0]}'])
def test_metadata_of_strangers_is_not_believed(text: str):
    settled = settle(DataOptions(path=Path("images")), [{KEY: text}], None)
    assert said(settled.options) == said(DataOptions())


HUGGING_FACE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}}
        | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3, "do_normalize": True},
        {"resize": 256, "fit": "crop", "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"},
    ),
    (
        {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
        {"resize": None, "fit": "stretch", "mean": [0.5] * 3, "interpolation": "bilinear"},
    ),
    ({"do_normalize": False, "size": {"height": 224, "width": 224}}, {"mean": [0.0] * 3, "std": [1.0] * 3}),
]


@pytest.mark.parametrize(("written", "expected"), HUGGING_FACE)
def test_the_file_of_hugging_face_is_read(written: dict[str, Any], expected: dict[str, Any], tmp_path: Path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    (tmp_path / "onnx").mkdir()
    for folder in (tmp_path, tmp_path / "onnx"):
        settled = settle(DataOptions(path=Path("images")), [{}], folder)
        assert {key: said(settled.options)[key] for key in expected} == expected
        assert settled.taken_from == "preprocessor_config.json beside the model"


def test_the_file_of_timm_is_read(tmp_path: Path):
    written = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    written["pretrained_cfg"] |= {"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center"}  # type: ignore[operator]
    (tmp_path / "config.json").write_text(json.dumps(written))
    settled = settle(DataOptions(path=Path("images")), [{}], tmp_path)
    assert said(settled.options) == said(DataOptions.from_values(VIT))
    assert settle(DataOptions(path=Path("images")), [remembered(resize=300)], tmp_path).options.resize == 300


@pytest.mark.parametrize(
    ("name", "text", "warned"),
    [
        ("config.json", '{"architectures": ["ViTForImageClassification"]}', False),
        ("config.json", "[", True),
        ("preprocessor_config.json", '{"do_pad": true}', True),
        ("preprocessor_config.json", '{"size": {"longest_edge": 1333}, "do_center_crop": true}', True),
        ("preprocessor_config.json", '{"image_mean": "red", "image_std": 1}', True),
        ("preprocessor_config.json", "[1]", True),
    ],
)
def test_a_file_that_is_not_understood_is_said_and_left(name: str, text: str, warned: bool, tmp_path: Path):
    (tmp_path / name).write_text(text)
    settled = settle(DataOptions(path=Path("images")), [{}], tmp_path)
    assert said(settled.options) == said(DataOptions())
    assert [name in warning for warning in settled.warnings] == [True] * warned


def test_the_document_has_every_preset():
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in PRESETS if f"| `{name}` |" not in page] == []


def test_of_images_that_are_padded_only_the_values_are_taken(tmp_path: Path):
    written = {"do_pad": True, "size": {"shortest_edge": 800, "longest_edge": 1333}, "resample": 2}
    values = {"image_mean": [0.5], "image_std": [0.2]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**written, **values}))
    settled = settle(DataOptions(path=Path("images")), [{}], tmp_path)
    expected = DataOptions.from_values({"mean": 0.5, "std": 0.2, "interpolation": "bilinear"})
    assert said(settled.options) == said(expected)
    assert not settled.guessed and "(do_pad and longest_edge)" in " ".join(settled.warnings)
