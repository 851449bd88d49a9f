"""Exit 3 for data that cannot be used, 0 with a note for a stray corrupt image; nothing is written on an error."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import IMAGES, call, fresh_model
from desk import unchanged
from PIL import Image

SHAPE, NAME = (3, 32, 32), "pixel_values"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fresh_model(tmp_path)


def npy(array: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "data.npy", array)
        return folder / "data.npy"

    return make


def npz(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
        return folder / "data.npz"

    return make


def script(body: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "loader.py").write_text(f"import numpy as np\n\n\ndef load_data():\n    {body}\n")
        return folder / "loader.py"

    return make


def empty_folder(folder: Path) -> Path:
    (folder / "images").mkdir()
    return folder / "images"


def no_images(folder: Path) -> Path:
    (empty_folder(folder) / "notes.txt").write_text("no image")
    return folder / "images"


def broken_archive(folder: Path) -> Path:
    (folder / "data.npz").write_bytes(b"PK\x03\x04 and no more")
    return folder / "data.npz"


GOOD = np.zeros((4, *SHAPE), np.float32)

UNUSABLE: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "wrong shape": (npy(GOOD[:, :, :8, :8]), [NAME, "[4, 3, 8, 8]", "3, 32, 32"]),
    "wrong rank": (npy(GOOD[0]), [NAME, "[3, 32, 32]"]),
    "wrong type": (npy(GOOD.astype(np.float64)), [NAME, "float64", "array.astype('float32')"]),
    "wrong name": (npz(pixels=GOOD), ["lacks pixel_values", "pixels", "np.savez"]),
    "no samples": (npz(pixel_values=GOOD[:0]), ["holds no samples", f"{NAME}: [0, "]),
    "labels of another length": (npz(pixel_values=GOOD, labels=np.arange(3)), ["number of samples", "labels: 3"]),
    "NaN": (npy(np.full_like(GOOD, np.nan)), [NAME, "NaN", "data.npy"]),
    "a broken archive": (broken_archive, ["cannot read", "data.npz"]),
    "an empty folder": (empty_folder, ["no images in", "an empty folder", ".jpg"]),
    "a folder without images": (no_images, ["no images in", "1 other file"]),
    "a script's wrong name": (script('yield {"x": np.zeros((1, 3, 32, 32), np.float32)}'), [NAME, "keys x"]),
    "a script's wrong shape": (
        script(f'yield {{"{NAME}": np.zeros((1, 3, 8, 8), np.float32)}}'),
        [NAME, "[1, 3, 8, 8]"],
    ),
    "a script's wrong type": (script(f'yield {{"{NAME}": np.zeros((1, 3, 32, 32))}}'), [NAME, "float64"]),
    "a script that raises": (script("yield 1 / 0"), ["loader.py failed", "ZeroDivisionError", "line 5"]),
    "a script without feeds": (script("yield from []"), ["loader.py"]),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_data_that_cannot_be_used(case: str, model: Path, tmp_path: Path) -> None:
    make, says = UNUSABLE[case]
    data = make(tmp_path)
    with unchanged(tmp_path):
        outcome = call("apply", model, "-p", "prune24{method=sparsegpt},qdq-int8", "--data", data)
    assert (outcome.code, outcome.out) == (3, ""), outcome.err
    assert outcome.err.startswith("unsupported data: ")
    for text in says:
        assert text in outcome.err


def images(folder: Path, count: int, corrupt: int) -> Path:
    """`count` small JPEGs, the first `corrupt` of them cut in the middle."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"{number:03}.jpg"
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
        if number < corrupt:
            file.write_bytes(file.read_bytes()[:300])
    return folder


def test_one_corrupt_jpeg_in_a_hundred_is_named_left_out_and_counted(model: Path, tmp_path: Path) -> None:
    folder, report = images(tmp_path / "images", 100, corrupt=1), tmp_path / "report.json"
    outcome = call("apply", model, "-p", "qdq-int8", "--data", folder, "--report", report)
    assert outcome.code == 0, outcome.err
    assert "warning: 1 of 100 images cannot be read and are left out: 000.jpg" in outcome.err
    written = json.loads(report.read_text())
    assert len(written["data"]["skipped"]) == 1
    assert written["data"]["skipped"][0].startswith("000.jpg: ")
    assert written["steps"][0]["findings"]["images"] == 99
    assert "000.jpg" in report.with_suffix(".md").read_text()


def test_more_than_one_corrupt_jpeg_in_a_hundred_is_an_error(model: Path, tmp_path: Path) -> None:
    folder = images(tmp_path / "images", 100, corrupt=2)
    with unchanged(tmp_path):
        outcome = call("apply", model, "-p", "qdq-int8", "--data", folder)
    assert (outcome.code, outcome.out) == (3, ""), outcome.err
    for text in ("2 of 100 images cannot be read", "000.jpg", "001.jpg", "at most 1%", "remove or replace these files"):
        assert text in outcome.err


def test_check_names_a_corrupt_jpeg_too(model: Path, tmp_path: Path) -> None:
    folder = images(tmp_path / "images", 100, corrupt=1)
    outcome = call("check", model, model, "--data", folder, "--json", "-")
    assert outcome.code == 0, outcome.err
    assert "000.jpg" in outcome.err
    found = json.loads(outcome.out)
    assert found["comparison"]["samples"] == 99
    assert found["data"]["skipped"][0].startswith("000.jpg: ")


def test_a_gate_without_labels_is_told_before_the_models_run(model: Path, tmp_path: Path) -> None:
    folder = images(tmp_path / "images", 4, corrupt=0)
    with unchanged(tmp_path):
        outcome = call("check", model, model, "--data", folder, "--min-top1", "0.5")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--classes FILE" in outcome.err


def test_the_digits_themselves_are_good_data(model: Path) -> None:
    """What the cases above differ from."""
    assert call("apply", model, "-p", "qdq-int8", "--data", IMAGES, "--samples", "4").code == 0
