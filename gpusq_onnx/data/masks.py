"""Label maps: a class for each pixel of an image, as a picture of the same size whose values are the classes.

Layout: FOLDER/a/b.png for the image a/b.jpg; 8 bits, grey or with a palette; 255 (IGNORED) is no class. ADE20K's maps
count from 1 and hold 0 where nothing is named: `reduce_zero_label` makes them 0, 1, ... and IGNORED.
Source: the formats of mmsegmentation and torchvision, which both ignore 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gpusq_onnx.data.decode import decoded
from gpusq_onnx.errors import UnsupportedDataError, UsageError
from gpusq_onnx.tasks.segmentation import IGNORED


def label_maps(files: Sequence[str], folder: Path) -> dict[str, Path]:
    """The label map of each of `files` (relative POSIX paths) that has one, in the files' order.

    Raises UsageError when there is no such folder, UnsupportedDataError when no file has one.
    """
    if not folder.is_dir():
        raise UsageError(f"the folder of label maps does not exist: {folder}", where="--masks")
    found = {name: folder / Path(name).with_suffix(".png") for name in files}
    found = {name: path for name, path in found.items() if path.is_file()}
    if not found:
        raise UnsupportedDataError(
            f"no image has a label map in {folder}",
            where="--masks",
            expected=f"{Path(files[0]).with_suffix('.png').as_posix()} for {files[0]}",
        )
    return found


def read_label_map(path: Path, size: tuple[int, int], reduce_zero_label: bool, max_pixels: int) -> Image.Image:
    """One label map as an 8-bit picture.

    Args:
        size: width and height of its image.
        reduce_zero_label: 0 becomes IGNORED, and every class one less.
        max_pixels: of a map; see `decode`.

    Raises:
        UnsupportedDataError: no picture, not of 8 bits a pixel, or of another size.
    """
    try:
        opened = decoded(path, max_pixels, ("PNG",))
    except Exception as error:  # Pillow's decoders raise whatever the bytes make them raise
        raise UnsupportedDataError("a label map cannot be read", where=str(path), found=str(error)) from None
    if opened.mode not in ("L", "P") or opened.size != size:
        raise UnsupportedDataError(
            "a label map does not fit its image",
            where=str(path),
            expected=f"8 bits a pixel, {size[0]} x {size[1]}",
            found=f"mode {opened.mode}, {opened.size[0]} x {opened.size[1]}",
        )
    classes = np.asarray(opened)
    if reduce_zero_label:
        classes = np.where(classes == IGNORED, IGNORED, classes - 1)  # 0 - 1 wraps to 255
    return Image.fromarray(classes.astype(np.uint8))
