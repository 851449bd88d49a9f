"""A terminal of a given width in a given folder, for tests of what is printed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def terminal(folder: Path, columns: int | str) -> Iterator[None]:
    """`folder` is the current one, and the terminal has so many columns; both are as before afterwards."""
    here, before = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(folder)
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
