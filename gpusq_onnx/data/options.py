"""What the caller says about the data: where it lies, how much of it, and how an image becomes a tensor.

The same keys come from `--data` and its companions on the command line, from a TOML file, or from both; an explicit
command-line value wins. Fields left out are read from the model's input where it says (crop, layout).

Source: the names and meanings of timm's and torchvision's evaluation transforms (resize, centre crop, mean, std).
Limits: one preprocessing for all images, without letterboxes (padding); no augmentation.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gpusq_onnx.data.presets import IMAGENET_MEAN, IMAGENET_STD, PRESETS
from gpusq_onnx.errors import UsageError
from gpusq_onnx.parsing import parse_toml, read_bytes
from gpusq_onnx.text import expectation

MOST_PIXELS = 178_956_970  # Pillow refuses more by itself
CROPPED_BOXES = "annotations need fit=stretch: a crop moves the boxes"
LONGEST = 16_384  # a side of what goes into a model, px
TRUTHS = ("classes", "annotations", "masks")
"""The keys that say what images show; files or folders."""


class DataOptions(BaseModel):
    """Where the calibration or test data lies and how it is prepared; immutable, unknown keys forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(
        default=None,
        description="folder of images, .parquet, .tar, .npy, .npz, script FILE.py[:function]; none: synthetic images",
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        description="how many samples to use, spread over the classes; none: 128, of synthetic images 64; to train "
        "and score, all",
    )
    calibrate: int | None = Field(
        default=None,
        ge=1,
        description="how many of these prune and calibrate; none: 128 where others train, else all of them",
    )
    hold_out: int | None = Field(
        default=None, ge=1, description="how many of the samples nothing prunes, calibrates or trains with; none: 0"
    )
    preset: str | None = Field(
        default=None, description=f"values for the keys below that are not given: {', '.join(PRESETS)}"
    )
    resize: int | None = Field(
        default=None, ge=1, le=LONGEST, description="shorter side before the crop, px; none: crop / crop_ratio"
    )
    crop_ratio: float = Field(
        default=0.875, gt=0, le=1, description="crop / resize, where resize is not given: crop_pct"
    )
    crop: int | None = Field(
        default=None, ge=1, le=LONGEST, description="side of the square centre crop, px; none: what the model takes"
    )
    mean: tuple[float, ...] = Field(
        default=IMAGENET_MEAN, description="mean per RGB channel, of pixels 0..1; 1 or 3 values"
    )
    std: tuple[float, ...] = Field(
        default=IMAGENET_STD, description="std per RGB channel, of pixels 0..1; 1 or 3 values"
    )
    fit: Literal["crop", "stretch"] = Field(
        default="crop",
        description="crop: resize the shorter side and crop; stretch: the whole image to the input's size",
    )
    classes: Path | None = Field(default=None, description="text file; line i (from 0) is the folder name of class i")
    annotations: Path | None = Field(
        default=None, description="COCO JSON (boxes); of the folder's images, those it is about"
    )
    masks: Path | None = Field(
        default=None, description="folder of label maps, NAME.png for NAME.jpg; images with one are used"
    )
    reduce_zero_label: bool = Field(
        default=False, description="in label maps 0 is no class, and 1 is the first (ADE20K)"
    )
    layout: Literal["NCHW", "NHWC"] | None = Field(
        default=None, description="axis order; none: what the model's input says"
    )
    channels: Literal["RGB", "BGR"] = Field(
        default="RGB", description="channel order of the tensor; mean and std stay RGB"
    )
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = Field(
        default="bicubic", description="of the resize"
    )
    max_pixels: int = Field(
        default=89_478_485, ge=1, le=MOST_PIXELS, description="an image with more counts as corrupt: width x height"
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="chooses the samples and the synthetic images")

    @model_validator(mode="before")
    @classmethod
    def _under_the_preset(cls, values: Any) -> Any:
        """A preset's values count as given, but for those that are."""
        name = values.get("preset") if isinstance(values, dict) else None
        if name is None:
            return values
        if name not in PRESETS:
            raise ValueError(f"there is no data preset {name!r}; there are {', '.join(PRESETS)}")
        preset = dict(PRESETS[name].values)
        if values.get("resize") is not None or values.get("crop_ratio") is not None:
            preset.pop("crop_ratio", None)
        return {**preset, **values}

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        """`0.5,0.5,0.5` (command line) and a bare 0.5 (TOML) are tuples too."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, (int, float)) else value

    @field_validator("mean", "std")
    @classmethod
    def _one_or_three(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) not in (1, 3):
            raise ValueError(f"takes 1 or 3 values, {len(value)} given")
        return value

    @model_validator(mode="after")
    def _ranges(self) -> DataOptions:
        if not all(0 < s < float("inf") for s in self.std):
            raise ValueError("std must be above 0")
        if not all(0 <= m <= 1 for m in self.mean):
            raise ValueError("mean must be 0 to 1, as pixels are: divide a mean of 0 to 255, and its std, by 255")
        if self.resize is not None and self.crop is not None and self.resize < self.crop:
            raise ValueError(f"resize ({self.resize}) must not be smaller than crop ({self.crop})")
        if self.resize is not None and self.fit == "stretch":
            raise ValueError("fit=stretch takes the whole image to the input's size: leave resize out")
        given = [name for name in TRUTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are labels of different kinds: give one of them")
        if self.reduce_zero_label and self.masks is None:
            raise ValueError("reduce_zero_label is about label maps, and masks names none")
        if self.annotations is not None and self.fit != "stretch" and "fit" in self.model_fields_set:
            raise ValueError(CROPPED_BOXES)  # where it is not given, the model may remember it
        return self

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, where: str = "data options") -> DataOptions:
        """Options from plain values; raises UsageError naming every offending key, with what it may be."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _usage_error(error, where) from None

    @classmethod
    def from_toml(cls, file: Path, overrides: Mapping[str, Any] | None = None) -> DataOptions:
        """Options from a TOML file of these keys; `overrides` (explicit command-line values) win.

        Relative paths in the file start from the file's folder. Raises UsageError.
        """
        try:
            values = parse_toml(read_bytes(file, "--data-options").decode("utf-8-sig"))
        except OSError as error:
            raise UsageError(f"cannot read the data options {file}", found=error.strerror or str(error)) from error
        except ValueError as error:
            raise UsageError(
                f"{file} is not TOML", found=str(error), hint='write keys such as path = "images"'
            ) from error
        for key in ("path", *TRUTHS):
            if isinstance(values.get(key), str):
                values[key] = file.parent / values[key]
        return cls.from_values({**values, **(overrides or {})}, where=str(file))

    def to_toml(self) -> str:
        """The keys that were given, as a file that `from_toml` reads from anywhere: paths are absolute."""
        lines = []
        for key in sorted(self.model_fields_set):
            value = getattr(self, key)
            # JSON writes strings, numbers and arrays as TOML does, except that TOML wants DEL escaped as well.
            text = json.dumps(str(value.absolute()) if isinstance(value, Path) else value, ensure_ascii=False)
            if value is not None:
                lines.append(f"{key} = {text}\n".replace("\x7f", "\\u007f"))
        return "".join(lines)

    def echo(self) -> dict[str, Any]:
        """The options as plain JSON values, paths as the caller gave them; for the report."""
        return self.model_dump(mode="json")


def _usage_error(error: ValidationError, where: str) -> UsageError:
    valid = list(DataOptions.model_fields)
    problems, hints = [], []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"][:1])
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}")
            hints += [f"did you mean {near!r}?" for near in difflib.get_close_matches(key, valid, n=1)]
        else:
            wanted = expectation(item["msg"])
            must = " must be" if item["msg"].startswith("Input should be") else ":"
            problems.append(f"{key}{must} {wanted} (found {item['input']!r})" if key else wanted)
    return UsageError(
        "; ".join(dict.fromkeys(problems)),
        where=where,
        expected="keys " + ", ".join(valid) if any(p.startswith("unknown") for p in problems) else None,
        hint=" ".join(hints) or None,
    )
