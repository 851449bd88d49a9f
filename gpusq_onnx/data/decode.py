"""From encoded bytes to pixels: only formats that are named, only so many pixels, only the first frame.

Pillow opens some fifty formats by their first bytes, whatever the file is called; one of them (EPS) starts Ghostscript.
Here a file is one of `FORMATS` or it is corrupt. The size is read from the header, before memory is taken for pixels;
of an animation the first frame is decoded and no other.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def decoded(file: Path | BytesIO, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image in `file`, its pixels in memory and the file closed.

    Raises:
        ValueError: more pixels than `max_pixels`, or none of the formats.
        Exception: whatever Pillow's decoders raise for broken bytes.
    """
    if isinstance(file, Path) and not file.is_file():
        raise ValueError("it is no regular file")
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"it is not one of {', '.join(formats)}") from None
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"it has {width} x {height} pixels, more than max_pixels {max_pixels} allows")
        image.load()  # reads to the end: leaving `with` closes the file, the pixels stay
        return image
