"""Pictures as bytes, for the readers of archives and tables."""

from io import BytesIO

from PIL import Image


def encoded(value: int) -> bytes:
    """A PNG of 8 x 8 pixels of one grey."""
    out = BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(out, "PNG")
    return out.getvalue()
