from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import Preprocess, as_mode, for_input
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import UnsupportedDataError, UsageError


def spec(*shape: int | str | None, dtype: object = np.float32) -> InputSpec:
    return InputSpec("pixels", np.dtype(dtype), shape)  # type: ignore[call-overload]


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def apply(preprocess: Preprocess, image: Image.Image) -> tuple[np.ndarray, str]:
    out = np.empty(preprocess.shape, preprocess.spec.dtype)
    return out, preprocess.write(image, out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_formula_layout_and_dtype(dtype: object) -> None:
    image = noise(8, 8)
    options = DataOptions(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = ((np.asarray(image) / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]).astype(dtype)
    nchw, _ = apply(for_input(options, spec("b", 3, 8, 8, dtype=dtype)), image)
    nhwc, _ = apply(for_input(options, spec("b", 8, 8, 3, dtype=dtype)), image)
    assert nchw.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(nchw, expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(nhwc, expected)


def test_bgr_reverses_channels_with_their_statistics() -> None:
    image = noise(8, 8)
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    rgb, _ = apply(for_input(DataOptions(**options), spec("b", 3, 8, 8)), image)
    bgr, _ = apply(for_input(DataOptions(**options, channels="BGR"), spec("b", 3, 8, 8)), image)
    np.testing.assert_array_equal(bgr, rgb[::-1])


def test_uint8_models_get_raw_pixels() -> None:
    image = noise(8, 8)
    out, _ = apply(for_input(DataOptions(), spec("b", 8, 8, 3, dtype=np.uint8)), image)
    np.testing.assert_array_equal(out, np.asarray(image))


@pytest.mark.parametrize(
    ("size", "geometry", "scaled_to"),
    [
        ((20, 30), "resized", (16, 24)),
        ((16, 40), "cropped only", (16, 40)),
        ((13, 13), "cropped only", (13, 13)),
        ((9, 30), "enlarged", (12, 40)),
        ((6, 6), "enlarged", (12, 12)),
        ((7, 3), "enlarged", (28, 12)),
    ],
)
def test_geometry(size: tuple[int, int], geometry: str, scaled_to: tuple[int, int]) -> None:
    """The centre of the image scaled to `scaled_to`, whatever the way there."""
    image = noise(*size)
    out, said = apply(for_input(DataOptions(resize=16, mean=0, std=1), spec("b", 3, 12, 12)), image)
    scaled = image.resize((scaled_to[1], scaled_to[0]), Image.Resampling.BICUBIC) if size != scaled_to else image
    top, left = round((scaled_to[0] - 12) / 2), round((scaled_to[1] - 12) / 2)
    expected = np.asarray(scaled)[top : top + 12, left : left + 12].transpose(2, 0, 1) / 255.0
    assert said == geometry
    np.testing.assert_allclose(out, expected, atol=1e-6)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 24), st.integers(1, 24))
def test_every_size_fills_the_crop(height: int, width: int, rows: int, cols: int) -> None:
    image = Image.new("RGB", (width, height), (255, 255, 255))
    out, _ = apply(for_input(DataOptions(mean=0, std=1), spec("b", 3, rows, cols)), image)
    np.testing.assert_array_equal(out, np.ones((3, rows, cols)))  # no border of any other colour


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = noise(8, 8).convert(mode)
    out, _ = apply(for_input(DataOptions(mean=0, std=1), spec("b", 3, 8, 8)), image)
    np.testing.assert_allclose(out.transpose(1, 2, 0), np.asarray(image.convert("RGB")) / 255.0, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_palettes_with_transparency_keep_their_colours(tmp_path: object) -> None:
    path = f"{tmp_path}/palette.png"
    image = noise(8, 8).quantize(16)
    image.save(path, transparency=bytes(range(16)))
    with Image.open(path) as opened:
        assert opened.mode == "P"
        np.testing.assert_array_equal(np.asarray(as_mode(opened, "RGB")), np.asarray(image.convert("RGB")))


def test_a_long_strip_is_not_blown_up() -> None:
    """Enlarged as a whole it would be 800 x 640 000 pixels."""
    preprocess = for_input(DataOptions(mean=0, std=1), spec("b", 3, 800, 800))
    out, said = apply(preprocess, Image.new("RGB", (40_000, 50), (255, 0, 0)))
    assert said == "enlarged"
    assert (out[0].min(), out[1].max()) == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_deep_grey_is_scaled_not_clipped(dtype: type) -> None:
    deep = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=dtype))
    assert deep.mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(as_mode(deep, "L")), [[0, 1, 128, 255]])


def test_exif_orientation_is_not_applied(tmp_path: object) -> None:
    path = f"{tmp_path}/turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = noise(8, 8)
    pixels.save(path, exif=exif)
    with Image.open(path) as turned:
        out, _ = apply(for_input(DataOptions(mean=0, std=1), spec("b", 8, 8, 3)), turned)
    np.testing.assert_allclose(out, np.asarray(pixels) / 255.0, atol=1e-6)


def test_grey_models_take_one_channel_and_averaged_statistics() -> None:
    preprocess = for_input(DataOptions(mean=(0.1, 0.2, 0.3), std=0.5), spec("b", 1, 8, 8))
    assert preprocess.channels == 1
    assert preprocess.mean == pytest.approx((0.2,))
    out, _ = apply(preprocess, noise(8, 8))
    np.testing.assert_allclose(out[0], (np.asarray(noise(8, 8).convert("L")) / 255.0 - 0.2) / 0.5, atol=1e-6)


def test_defaults_come_from_the_model() -> None:
    reported = for_input(DataOptions(), spec("b", 3, 224, 224)).describe()
    assert (reported["layout"], reported["crop"], reported["resize"]) == ("NCHW", [224, 224], 256)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: for_input(DataOptions(), spec("b", 3, "h", "w")), UsageError),
        (lambda: for_input(DataOptions(crop=200), spec("b", 3, 224, 224)), UsageError),
        (lambda: for_input(DataOptions(resize=200), spec("b", 3, 224, 224)), UsageError),
        (lambda: for_input(DataOptions(layout="NHWC"), spec("b", 3, 224, 224)), UsageError),
        (lambda: for_input(DataOptions(), spec("b", 4, 224, 224)), UnsupportedDataError),
        (lambda: for_input(DataOptions(), spec("b", 224)), UnsupportedDataError),
        (lambda: for_input(DataOptions(), spec("b", 3, 224, 224, dtype=np.int64)), UnsupportedDataError),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Preprocess], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"pixels|layout|crop"):
        make()
