"""One image as one tensor: RGB, resize, centre crop, /255, mean, std, layout, channel order, dtype.

    tensor[c] = (pixel[c] / 255 - mean[c]) / std[c]

looked up in a table of 256 values per channel, so the arithmetic is the same on every machine and for every dtype.
Geometry is torchvision's `Resize(shorter side)` and `CenterCrop` on PIL images, with two differences: an image whose
shorter side is at most `resize` is cropped only, and one smaller than the crop is enlarged just enough to fill it
(torchvision pads with black). With fit=stretch the whole image is resized to the input, as many detectors want it.

As in torchvision and timm, EXIF orientation and colour profiles are not applied, alpha is dropped, and the first frame
stands for all. 16-bit grey is scaled to 8 bits. A uint8 input takes the pixels 0..255 as they are: such a model
normalises inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Box, InputSpec
from gpusq_onnx.errors import UnsupportedDataError, UsageError

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
FLOATS = ("float32", "float16", "bfloat16", "float64")

Geometry = Literal["resized", "cropped only", "enlarged"]
GEOMETRIES: tuple[Geometry, ...] = get_args(Geometry)


class SizeOpenError(UsageError):
    """A model leaves the size of its images open, and no option says it."""

    def __init__(self, spec: InputSpec, hint: str) -> None:
        what = f"the model's input {spec.name!r} takes images of any size: say which"
        super().__init__(what, where="--crop", found=str(spec), hint=hint)
        self.spec = spec


@dataclass(frozen=True, eq=False)
class Preprocess:
    """How images become one model input. `height` and `width` are the crop's; `table` is dtype[channels, 256]."""

    spec: InputSpec
    layout: Literal["NCHW", "NHWC"]
    order: Literal["RGB", "BGR"]
    channels: int
    height: int
    width: int
    resize: int | None  # None: the whole image is stretched to the input
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    table: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample, without the batch axis."""
        if self.layout == "NCHW":
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)

    def write(self, image: Image.Image, out: NDArray[Any], box: Box | None = None) -> Geometry:
        """Prepare `image` (any mode and size) into `out`, dtype[*shape]; says what the geometry step did.

        With a box, that part of the image is resized to the input, and the options' geometry does not apply.
        """
        image = as_mode(image, "RGB" if self.channels == 3 else "L")
        if box is None:
            fitted, geometry = self._fit(image, FILTERS[self.interpolation])
        else:
            part = box.pixels(image.size, (self.width, self.height))
            fitted, geometry = image.resize((self.width, self.height), FILTERS[self.interpolation], box=part), "resized"
        bands = fitted.split() if self.order == "RGB" else fitted.split()[::-1]
        planes = out if self.layout == "NCHW" else np.moveaxis(out, -1, 0)
        for plane, values, band in zip(planes, self.table, bands, strict=True):
            np.take(values, np.asarray(band), out=plane, mode="clip")  # clip: uint8 cannot be out of range
        return geometry

    def fitted(self, image: Image.Image, interpolation: str) -> Image.Image:
        """What belongs to an image pixel by pixel, of its size, resized and cropped as the image is."""
        return self._fit(image, FILTERS[interpolation])[0]

    def _fit(self, image: Image.Image, how: Image.Resampling) -> tuple[Image.Image, Geometry]:
        width, height = image.size
        if self.resize is None:
            stretched = image.resize((self.width, self.height), how)
            return stretched, "enlarged" if width < self.width and height < self.height else "resized"
        geometry: Geometry = "cropped only"
        shorter = min(width, height)
        if shorter > self.resize:
            geometry = "resized"
            # int(), not round(): torchvision's rule for the longer side.
            width, height = int(self.resize * width / shorter), int(self.resize * height / shorter)
        if width < self.width or height < self.height:
            return self._fill(image, how)
        if (width, height) != image.size:
            image = image.resize((width, height), how)
        left, top = round((width - self.width) / 2), round((height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height)), geometry

    def _fill(self, image: Image.Image, how: Image.Resampling) -> tuple[Image.Image, Geometry]:
        """The largest central part with the crop's aspect, scaled to the crop; not the whole, which may be a strip."""
        width, height = image.size
        scale = max(self.width / width, self.height / height)
        left, top = max(0.0, (width - self.width / scale) / 2), max(0.0, (height - self.height / scale) / 2)
        box = (left, top, width - left, height - top)
        filled = image.resize((self.width, self.height), how, box=box)
        return filled, "enlarged" if scale > 1 else "resized"

    def describe(self) -> dict[str, Any]:
        """What is done to each image, after defaults were filled in, as plain JSON values."""
        raw = self.spec.dtype.name == "uint8"
        return {
            "input": self.spec.name,
            "dtype": self.spec.dtype.name,
            "layout": self.layout,
            "channels": self.order if self.channels == 3 else "grey",
            "fit": "stretch" if self.resize is None else "crop",
            "resize": self.resize,
            "crop": [self.height, self.width],
            "interpolation": self.interpolation,
            "mean": None if raw else list(self.mean),
            "std": None if raw else list(self.std),
        }


def for_input(options: DataOptions, spec: InputSpec) -> Preprocess:
    """The preprocessing that `options` ask for and that `spec`, the model's image input, can take.

    Raises UnsupportedDataError when the input is no image, UsageError when an option contradicts it or is missing.
    """
    layout, channels = _layout(options, spec)
    rows, cols = (2, 3) if layout == "NCHW" else (1, 2)
    height = _side(options, spec, spec.shape[rows])
    width = _side(options, spec, spec.shape[cols])
    resize = None if options.fit == "stretch" else options.resize or int(max(height, width) / options.crop_ratio)
    if resize is not None and resize < max(height, width):
        raise UsageError(
            f"resize {resize} is smaller than the crop",
            where=f"--resize {resize}",
            expected=f"at least {max(height, width)}",
            hint="leave --resize out for the usual crop / 0.875",
        )
    mean, std = _per_channel(options.mean, channels), _per_channel(options.std, channels)
    return Preprocess(
        spec=spec,
        layout=layout,
        order=options.channels,
        channels=channels,
        height=height,
        width=width,
        resize=resize,
        interpolation=options.interpolation,
        mean=mean,
        std=std,
        table=_table(spec, mean, std, reverse=options.channels == "BGR"),
    )


def as_mode(image: Image.Image, mode: Literal["RGB", "L"]) -> Image.Image:
    """`image` in 8-bit RGB or grey. Deep grey is scaled from 16 bits; Pillow alone would clip it to white."""
    if image.mode.startswith("I"):
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image if image.mode == mode else image.convert(mode)


def _layout(options: DataOptions, spec: InputSpec) -> tuple[Literal["NCHW", "NHWC"], int]:
    """Layout and number of channels; what the shape leaves open is NCHW with 3 channels."""
    if len(spec.shape) != 4 or spec.dtype.name not in (*FLOATS, "uint8"):
        raise UnsupportedDataError(
            f"the model's input {spec.name!r} does not take images",
            expected="4 dimensions (NCHW or NHWC), of a float type or uint8",
            found=str(spec),
            hint="give an .npz with one array per input name, or a Polygraphy script",
        )
    axes: dict[Literal["NCHW", "NHWC"], int] = {"NCHW": 1, "NHWC": 3}
    for layout, axis in axes.items():
        channels = spec.shape[axis]
        if options.layout in (None, layout) and channels in (1, 3):
            return layout, int(channels)
    for layout, axis in axes.items():
        if options.layout in (None, layout) and not isinstance(spec.shape[axis], int):
            return layout, 3
    if options.layout is not None:
        raise UsageError(
            f"layout {options.layout} does not fit the model's input",
            where=f"--layout {options.layout}",
            expected="1 or 3 channels on that axis",
            found=str(spec),
        )
    raise UnsupportedDataError(
        f"the model's input {spec.name!r} has no axis of 1 or 3 channels", expected="NCHW or NHWC", found=str(spec)
    )


def _side(options: DataOptions, spec: InputSpec, dim: int | str | None) -> int:
    """One side of the crop: the model's where it is fixed, else the option's."""
    if isinstance(dim, int):
        if options.crop not in (None, dim):
            raise UsageError(
                f"crop {options.crop} does not fit the model's input",
                where=f"--crop {options.crop}",
                expected=f"{dim}, or leave --crop out",
                found=str(spec),
            )
        return dim
    if options.crop is None:
        raise SizeOpenError(spec, "for example --resize 256 --crop 224")
    return options.crop


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value per channel: a single one is repeated, and three are averaged for a grey model (as timm does)."""
    if channels == 1:
        return (sum(values) / len(values),)
    return values * 3 if len(values) == 1 else values


def _table(spec: InputSpec, mean: tuple[float, ...], std: tuple[float, ...], *, reverse: bool) -> NDArray[Any]:
    """dtype[channels, 256]: the value of every pixel, computed in float64 and rounded once."""
    pixels = np.arange(256)
    if spec.dtype.name == "uint8":
        return np.tile(pixels.astype(np.uint8), (len(mean), 1))
    table: NDArray[Any] = (pixels / 255.0 - np.array(mean)[:, None]) / np.array(std)[:, None]
    return (table[::-1] if reverse else table).astype(spec.dtype, order="C")
