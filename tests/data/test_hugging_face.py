"""preprocessor_config.json of Hugging Face: what image processors write, and what none of them does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpusq_onnx.data.hugging_face import options_of
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import for_input
from gpusq_onnx.data.remembered import settle
from gpusq_onnx.data.source import InputSpec

SPEC = InputSpec("x", np.dtype(np.float32), (1, 3, 224, 224))
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {"mean": [0.48, 0.457, 0.408], "std": [0.268, 0.261, 0.275]}
CLIP_WRITTEN = {"image_mean": CLIP["mean"], "image_std": CLIP["std"]}

PROCESSORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViTImageProcessor": (
        {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 0.00392156862745098}
        | {"resample": 2, "size": {"height": 224, "width": 224}, **HALF},
        {"fit": "stretch", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
    ),
    "ViTFeatureExtractor": ({"do_resize": True, "size": 384, **HALF}, {"fit": "stretch", "mean": [0.5] * 3}),
    "CLIPImageProcessor": (
        {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}}
        | {"do_convert_rgb": True, "resample": 3, **CLIP_WRITTEN},
        {"fit": "crop", "resize": 224, "crop": 224, "interpolation": "bicubic", **CLIP},
    ),
    "CLIPFeatureExtractor": (
        {"do_center_crop": True, "crop_size": 224, "size": 224, **CLIP_WRITTEN},
        {"fit": "crop", "resize": 224, "crop": 224, **CLIP},
    ),
    "BitImageProcessor": (
        {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}, **HALF},
        {"fit": "crop", "resize": 256, "crop": 224},
    ),
    "BeitImageProcessor": (
        {"do_center_crop": False, "crop_size": {"height": 224, "width": 224}, "size": {"height": 224, "width": 224}},
        {"fit": "stretch"},
    ),
    "SiglipImageProcessor": (
        {"do_resize": True, "processor_class": "SiglipProcessor", "resample": 3, "size": {"height": 224, "width": 224}}
        | HALF,
        {"fit": "stretch", "interpolation": "bicubic", "std": [0.5] * 3},
    ),
    "ConvNextImageProcessor": (
        {"crop_pct": 0.875, "size": {"shortest_edge": 224}, "resample": 3},
        {"fit": "crop", "crop_ratio": 0.875},
    ),
    "ConvNextImageProcessor of 384": ({"crop_pct": 0.875, "size": {"shortest_edge": 384}}, {"fit": "stretch"}),
    "PoolFormerImageProcessor": (
        {"crop_pct": 0.9, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
        | {"size": {"shortest_edge": 224}},
        {"fit": "crop", "resize": 248, "crop": 224},
    ),
    "LevitImageProcessor": (
        {"image_processor_type": "LevitImageProcessor", "do_center_crop": True, "size": {"shortest_edge": 224}},
        {"fit": "crop", "resize": 256},
    ),
    "RTDetrImageProcessor": (
        {"do_normalize": False, "do_rescale": True, "do_pad": False, "size": {"height": 640, "width": 640}}
        | {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"fit": "stretch", "mean": [0.0], "std": [1.0]},
    ),
    "VivitImageProcessor": (
        {"offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False, "size": {"shortest_edge": 224}}
        | {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
        {"mean": [0.5], "std": [0.5], "resize": 224},
    ),
    "nulls": ({"size": None, "crop_pct": None, "do_pad": None, "image_mean": None}, {}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_processors_write_is_understood_without_a_word(name: str) -> None:
    written, expected = PROCESSORS[name]
    found, notes = options_of(written)
    assert {key: found[key] for key in expected} == {
        key: pytest.approx(value) if key in ("mean", "std") else value for key, value in expected.items()
    }
    assert notes == []
    DataOptions.from_values(found)


@pytest.mark.parametrize("rescaled", [{}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5, "offset": True}])
@pytest.mark.parametrize(
    "normalised", [{"do_normalize": False}, {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3}]
)
def test_pixels_become_what_the_processor_makes_of_them(rescaled: dict[str, Any], normalised: dict[str, Any]) -> None:
    """By the processors' own arithmetic, written out."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    factor = rescaled.get("rescale_factor", 1 / 255) if rescaled.get("do_rescale", True) else 1.0
    wanted = pixels * factor - (1 if "offset" in rescaled else 0)
    if normalised.get("do_normalize", True):
        wanted = (wanted - normalised["image_mean"]) / normalised["image_std"]
    found, _ = options_of({**rescaled, **normalised, "size": {"height": 8, "width": 8}})
    made = for_input(DataOptions.from_values(found), InputSpec("x", np.dtype(np.float32), (1, 3, 8, 8)))
    row = np.empty((3, 8, 8), np.float32)
    made.write(Image.fromarray(pixels), row)
    np.testing.assert_allclose(np.moveaxis(row, 0, -1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("written", "words", "expected"),
    [
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}, "do_pad": True, **HALF}, "do_pad and longest_edge", {}),
        ({"size": 800, "max_size": 1333, **HALF}, "max_size", {}),
        ({"size": {"shortest_edge": 256}}, "crops nothing", {}),
        ({"do_resize": False, "size": 224}, "do_resize false", {}),
        ({"resample": 4}, "filter box", {}),
        ({"do_rescale": False}, "names no image_mean", {}),
        (
            {"do_center_crop": True, "crop_size": 224, "size": {"height": 256, "width": 256}},
            "stretches to 256x256 before the crop of 224",
            {"fit": "crop", "resize": 256, "crop": 224},
        ),
        (
            {"do_center_crop": True, "crop_size": 224, "size": {"height": 256, "width": 300}},
            "stretches to 256x300 and crops 224",
            {},
        ),
    ],
)
def test_what_has_no_counterpart_is_said(written: dict[str, Any], words: str, expected: dict[str, Any]) -> None:
    found, (note,) = options_of(written)
    assert words in note
    assert {key: value for key, value in found.items() if key not in ("mean", "std")} == expected


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([1], "expected an object of keys and values, found [1]"),
        (
            {"image_mean": [0.5] * 3},
            '"image_std": expected a number above 0, or a list of 1 or 3, as "image_mean" is there',
        ),
        ({"image_std": [0.5] * 3}, '"image_mean": expected a number'),
        ({"image_mean": "red", "image_std": 1}, '"image_mean": expected a number, or a list of 1 or 3, found "red"'),
        ({"image_mean": [0.5] * 2, "image_std": 1}, "found [0.5, 0.5]"),
        ({"image_mean": 0.5, "image_std": [0, 1, 1]}, '"image_std": expected a number above 0'),
        ({"image_mean": 0.5, "image_std": [[1]]}, "found a list of lists or objects"),
        ({"resample": 99}, '"resample": expected 0 to 5, one of Pillow\'s filters, found 99'),
        ({"size": {"edge": 3}}, '"size": expected pixels: 224, {"shortest_edge": 224}'),
        ({"size": {"height": 3}}, "found an object with height"),
        ({"size": "224"}, 'found "224"'),
        ({"size": 10**400}, '"size"'),
        ({"do_rescale": "no"}, '"do_rescale": expected true or false, found "no"'),
        ({"rescale_factor": 0}, '"rescale_factor": expected a number above 0, found 0'),
        ({"max_size": "big"}, '"max_size": expected a whole number of pixels, above 0, found "big"'),
        ({"crop_pct": 1e-300}, '"crop_pct": expected a number from 0.1 to 1'),
    ],
)
def test_what_is_not_understood_names_the_key_and_what_it_may_be(written: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    settled = settle(DataOptions(path=Path("images")), [], tmp_path)
    (warning,) = settled.warnings
    assert warning.startswith("preprocessor_config.json beside the model is not understood: ")
    assert words in warning and "\\n" not in warning
    assert warning.endswith("give --mean, --std and the size, or --data-preset")
    assert settled.guessed


def test_values_out_of_range_are_said_in_words(tmp_path: Path) -> None:
    written = {"image_mean": [127] * 3, "image_std": [128] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    (warning,) = settle(DataOptions(path=Path("images")), [], tmp_path).warnings
    assert "mean must be 0 to 1" in warning and "\\n" not in warning


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF), encoding="utf-8-sig")
    settled = settle(DataOptions(path=Path("images")), [], tmp_path)
    assert settled.warnings == ()
    assert for_input(settled.options, SPEC).describe()["mean"] == [0.5] * 3
