import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, fill_up
from gpusq_onnx.data.synthetic import noise_image
from gpusq_onnx.errors import UnsupportedDataError, UsageError
from gpusq_onnx.tasks.classification import Classification

IMAGE = InputSpec("pixel_values", np.dtype(np.float32), ("batch", 3, 32, 32))
SCALE = InputSpec("scale_factor", np.dtype(np.int64), ("batch", 2))
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize("name", ["absent", "absent.npz", "absent.py", "absent.py:load"])
def test_a_missing_path_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="data not found"):
        open_source(DataOptions(path=tmp_path / name), [IMAGE])


def test_an_unknown_kind_of_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"\.npz, or a Polygraphy script"):
        open_source(DataOptions(path=tmp_path / "cat.jpg"), [IMAGE])


def test_images_cannot_feed_two_inputs(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedDataError) as error:
        open_source(DataOptions(path=tmp_path), [IMAGE, SCALE])
    assert "scale_factor: int64 [batch, 2]" in str(error.value)
    assert ".npz" in str(error.value)
    assert "load_data()" in str(error.value)


def test_no_data_means_synthetic_images_and_says_so() -> None:
    options = DataOptions(samples=5, seed=1)
    source = open_source(options, [IMAGE])
    assert source.kind == "synthetic"
    assert "synthetic" in source.notes[0]
    first = np.concatenate([b.feed["pixel_values"] for b in source.batches(2)])
    again = np.concatenate([b.feed["pixel_values"] for b in open_source(options, [IMAGE]).batches(5)])
    assert first.shape == (5, 3, 32, 32)
    np.testing.assert_array_equal(first, again)
    assert source.digest() == open_source(options, [IMAGE]).digest()
    assert source.digest() != open_source(DataOptions(samples=5, seed=2), [IMAGE]).digest()


def test_synthetic_images_have_a_natural_spectrum() -> None:
    grey = np.stack([noise_image(0, index, 128, 128).mean(axis=-1) for index in range(16)])
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    amplitude = np.abs(np.fft.fft2(grey)).mean(axis=0)[0, 1:64]
    slope = np.polyfit(np.log(np.arange(1, 64)), np.log(amplitude), 1)[0]
    assert -1.3 < slope < -0.7
    assert 30 < grey.std() < 80  # ImageNet: 58


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 1), (5, 17)])
def test_synthetic_images_of_any_size(height: int, width: int) -> None:
    images = np.stack([noise_image(0, index, height, width) for index in range(4)])
    assert images.shape == (4, height, width, 3)
    assert len(np.unique(images)) > 4


def test_fill_up_repeats_the_last_row() -> None:
    np.testing.assert_array_equal(fill_up(np.array([1, 2]), 4), [1, 2, 2, 2])
    np.testing.assert_array_equal(fill_up(np.array([1, 2]), None), [1, 2])


def test_describe_is_plain(tmp_path: Path) -> None:
    import json

    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    source = open_source(DataOptions(path=tmp_path), [IMAGE])
    reported = json.loads(json.dumps(source.describe()))
    assert (reported["kind"], reported["samples"], reported["preprocess"]["resize"]) == ("images", 1, 36)


def test_opening_this_module_loads_neither_pillow_nor_a_runtime() -> None:
    heavy = "{'PIL', 'onnx', 'onnxruntime', 'polygraphy', 'torch'}"
    code = f"import sys, gpusq_onnx.data.source; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_accuracy_of_vit_tiny() -> None:
    """83.5 % top-1 on the 650 validation images: preprocessing and labels are what the model was trained with."""
    import onnxruntime

    options = DataOptions.from_values(
        {
            "path": SHARED / "imagenet" / "val",
            "classes": SHARED / "imagenet" / "classes.txt",
            "resize": 248,
            "crop": 224,
            "mean": "0.5,0.5,0.5",
            "std": "0.5,0.5,0.5",
        }
    )
    source = open_source(options, [InputSpec("pixel_values", np.dtype(np.float32), ("batch", 3, 224, 224))])
    session = onnxruntime.InferenceSession(SHARED / "vit_tiny_imagenet.onnx", providers=["CPUExecutionProvider"])
    metric = Classification()
    for batch in source.batches(16):
        assert batch.labels is not None
        metric.update(session.run(None, batch.feed)[0], batch.labels)
    assert metric.result()["n"] == 650
    assert metric.result()["top1"] == pytest.approx(0.835, abs=0.002)
