"""A model remembers how its images were prepared; wrong preprocessing does not pass for lost accuracy."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import gpusq_onnx
from gpusq_onnx.data import remembered
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.graph import io
from gpusq_onnx.pipeline import doubts
from gpusq_onnx.runtime.ort import Session

pytestmark = pytest.mark.long

SHARED = Path(os.environ.get("GPUSQ_SHARED", Path(__file__).parents[3] / "shared")) / "data"
ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit.onnx"
RIGHT = {"resize": 32, "mean": 0.5, "std": 0.5}
KEY = "pkg.gpusq_onnx.preprocess"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, models are asked."""
    monkeypatch.setattr(doubts, "SECONDS", 3600.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits as pictures, a folder a class, and the classes."""
    home = tmp_path_factory.mktemp("pictures")
    data = np.load(ASSETS / "digits_test.npz")
    pixels = np.rint((data["pixel_values"][:40] * 0.5 + 0.5) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for number, (image, label) in enumerate(zip(pixels, data["labels"], strict=False)):
        folder = home / "images" / f"digit-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    (home / "classes.txt").write_text("".join(f"digit-{digit}\n" for digit in range(10)))
    return home


@pytest.fixture(scope="module")
def small(images: Path) -> Path:
    """A model that was calibrated with the right preprocessing."""
    output = images / "small.onnx"
    gpusq_onnx.compress(MODEL, "qdq-int8", data=images / "images", data_options=RIGHT, output=output)
    return output


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_metadata_says_how_and_names_no_place(small: Path, images: Path):
    found = metadata(small)
    assert json.loads(found[KEY])["mean"] == [0.5] * 3
    assert str(images) not in json.dumps(found)


def test_the_same_command_gives_the_same_bytes_from_any_place(small: Path, images: Path, tmp_path: Path):
    (tmp_path / "elsewhere").symlink_to(images / "images")
    again = tmp_path / "again.onnx"
    gpusq_onnx.compress(MODEL, "qdq-int8", data=tmp_path / "elsewhere", data_options=RIGHT, output=again)
    assert again.read_bytes() == small.read_bytes()


def test_a_check_takes_it_from_there_and_says_so(small: Path, images: Path):
    truth = {"classes": images / "classes.txt"}
    found = gpusq_onnx.check(MODEL, small, data=images / "images", data_options=truth)
    given = gpusq_onnx.check(MODEL, small, data=images / "images", data_options={**truth, **RIGHT})
    assert found.comparison == given.comparison
    assert "taken from the model's metadata" in str(found) and "taken from" not in str(given)
    assert "lost accuracy" not in " ".join(found.data["notes"] + given.data["notes"])


def test_a_check_with_another_one_is_warned_of(small: Path, images: Path):
    found = gpusq_onnx.check(MODEL, small, data=images / "images", data_options={"mean": 0.1})
    assert "mean 0.1 is given, the model's metadata says 0.5" in " ".join(found.data["notes"])
    assert found.data["taken_from"] == "the model's metadata, but for mean"


def test_a_further_run_goes_on_with_it(small: Path, images: Path, tmp_path: Path):
    half = gpusq_onnx.compress(small, "fp16", data=images / "images", output=tmp_path / "half.onnx")
    assert half.report["data"]["preprocess"]["mean"] == [0.5] * 3
    assert metadata(half.path)[KEY] == metadata(small)[KEY]


def test_a_run_on_arrays_keeps_what_was_remembered(small: Path, tmp_path: Path):
    half = gpusq_onnx.compress(small, "fp16", data=ASSETS / "digits_test.npz", output=tmp_path / "half.onnx")
    assert metadata(half.path)[KEY] == metadata(small)[KEY]
    assert half.warnings == () or "preproc" not in " ".join(half.warnings)


def test_synthetic_images_are_not_remembered():
    assert KEY not in {entry.key for entry in gpusq_onnx.compress(MODEL, "qdq-int8").model.metadata_props}


def test_an_original_that_guesses_is_said():
    with np.load(ASSETS / "digits_test.npz") as data:
        right = dict(data)
    wrong = {**right, "pixel_values": -right["pixel_values"][:, :, ::-1]}
    for given, guesses in ((wrong, True), (right, False)):
        found = gpusq_onnx.check(MODEL, MODEL, data=given)
        assert ("the preprocessing is wrong" in " ".join(found.data["notes"])) == guesses


WRONG = "the preprocessing looks wrong"


def test_defaults_that_the_model_does_not_want_are_doubted(images: Path, tmp_path: Path):
    data = {"data": images / "images", "data_options": {"resize": 32}}
    made = gpusq_onnx.compress(MODEL, "qdq-int8", **data, output=tmp_path / "wrong.onnx")
    (said,) = [text for text in made.warnings if WRONG in text]
    assert "% with mean 0.5 std 0.5; give" in said
    assert made.report["data"]["guessed"] and "defaults, which nothing confirms" in str(made)
    found = gpusq_onnx.check(MODEL, MODEL, **data)
    assert [text for text in found.data["notes"] if WRONG in text] == [said]
    looked = gpusq_onnx.sensitivity(MODEL, **data, forms=["int8"], images=4, exact=1)
    assert said in looked.warnings and "mean and std are defaults" in str(looked)


def test_what_is_given_rightly_is_not_doubted(small: Path, images: Path):
    for model, options in ((MODEL, RIGHT), (small, {})):
        found = gpusq_onnx.check(model, small, data=images / "images", data_options=options)
        assert not any(WRONG in text for text in found.data["notes"])
        assert not found.data["guessed"]


def test_a_slow_model_is_not_asked_for_long(images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doubts, "SECONDS", 0.0)
    found = gpusq_onnx.check(MODEL, MODEL, data=images / "images", data_options={"resize": 32})
    assert not any(WRONG in text for text in found.data["notes"])


@pytest.mark.parametrize(("layout", "channels"), [("NCHW", "RGB"), ("NHWC", "BGR")])
def test_pixels_move_from_one_normalisation_to_another(layout: str, channels: str):
    pixels, order = np.random.default_rng(0).random((2, 4, 4, 3), np.float32), 1 if channels == "RGB" else -1
    one, other = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ((0.5,) * 3, (0.25, 0.5, 0.75))

    def as_input(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
        x = ((pixels - np.float32(mean)) / np.float32(std))[..., ::order]
        return x.transpose(0, 3, 1, 2) if layout == "NCHW" else x

    moved = doubts._moved(as_input(*one), one, other, {"layout": layout, "channels": channels})
    np.testing.assert_allclose(moved, as_input(*other), atol=1e-5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="wants ../shared")
@pytest.mark.parametrize(
    ("model", "data", "given", "preset", "options"),
    [
        ("vit_tiny_imagenet.onnx", "imagenet/train", {"resize": 248}, "vit", "--mean 0.5 --std 0.5"),
        ("deimv2_atto.onnx", "coco_mini/images", {"fit": "stretch"}, "coco-stretch", "--mean 0 --std 1"),
    ],
)
def test_real_models_know_theirs(model: str, data: str, given: dict[str, object], preset: str, options: str):
    path = SHARED / model
    for right in (False, True):
        asked = DataOptions.from_values({"path": SHARED / data, **given, **({"preset": preset} if right else {})})
        settled = remembered.settle(asked, [], None)
        source = open_source(settled.options, io.load(path).inputs())
        said = doubts.doubts(lambda: Session(path), source)
        assert [f"% with {options}; give" in text for text in said] == ([] if right else [True])
