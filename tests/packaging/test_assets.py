"""The embedded default: small, exact, accurate, the same in both forms, and what its script still makes; and nothing
that a run left is part of the repository."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from arrows import ROOT

ASSETS = ROOT / "tests" / "assets"
TOP = {
    ".ci", ".gitattributes", ".gitignore", ".pre-commit-config.yaml", "CITATION.cff", "LICENSE", "Makefile",
    "README.md", "action.yml", "constraints.txt", "docs", "examples", "gpusq_onnx", "passes", "pyproject.toml", "tests",
    "tools",
}  # fmt: skip
MODELS = ("digits_vit.onnx", "digits_vit_legacy17.onnx")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(ASSETS / name) as archive:
        return dict(archive)


def logits(model: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": images})[0]


def accuracy(model: Path) -> float:
    test = load("digits_test.npz")
    return float((logits(model, test["pixel_values"]).argmax(1) == test["labels"]).mean())


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_top_level_has_its_names_and_no_others():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip(f"git does not read this checkout: {listing.stderr.strip()}")
    assert {name.partition("/")[0] for name in listing.stdout.split("\0") if name} == TOP


def test_all_of_it_is_under_one_megabyte():
    assert sum((ASSETS / name).stat().st_size for name in (*MODELS, "digits_train.npz", "digits_test.npz")) < 1_000_000


@pytest.mark.parametrize("name", MODELS)
def test_the_model_reads_its_test_images(name: str):
    assert accuracy(ASSETS / name) >= 0.97


def test_both_exporters_wrote_the_same_function():
    images = load("digits_test.npz")["pixel_values"][:32]
    first, second = (logits(ASSETS / name, images) for name in MODELS)
    np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_batch_is_dynamic(name: str):
    model = onnx.load(ASSETS / name)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize(("name", "images"), [("digits_train.npz", 256), ("digits_test.npz", 355)])
def test_the_data_is_the_models_exact_input(name: str, images: int):
    data = load(name)
    assert data["pixel_values"].shape == (images, 3, 32, 32)
    assert data["pixel_values"].dtype == np.float32
    assert data["labels"].dtype == np.int64
    assert set(data["labels"].tolist()) == set(range(10))
    assert data["pixel_values"].min() == -1
    assert data["pixel_values"].max() == 1


def test_no_calibration_image_is_a_test_image():
    train, test = (
        {image.tobytes() for image in load(f"digits_{name}.npz")["pixel_values"]} for name in ("train", "test")
    )
    assert not train & test


def test_no_path_of_the_training_machine_is_left_in_the_models():
    for name in MODELS:
        assert str(ROOT).encode() not in (ASSETS / name).read_bytes()
        assert b"stack_trace" not in (ASSETS / name).read_bytes()


@pytest.mark.slow
def test_the_script_makes_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch", reason="needs the `train` extra")
    from tools.digits import train

    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path)])
    train.main()
    for name in ("digits_train.npz", "digits_test.npz"):
        assert (tmp_path / name).read_bytes() == (ASSETS / name).read_bytes()
    for name in MODELS:
        assert accuracy(tmp_path / name) >= 0.97
