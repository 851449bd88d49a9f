"""JSON, TOML and numbers from files that nobody vouches for: a value, or ValueError, whatever the text is.

The standard library's parsers raise RecursionError for deep nesting, and ValueError without a place for integers of
thousands of digits; here all of it is ValueError with a sentence. A byte order mark (UTF-8 of Windows) is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import no_file_at

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MARK = "\ufeff"
MOST_TEXT = 2**28  # bytes of a text file that is read whole


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for anything else."""
    return _guarded(json.loads, text.removeprefix(_MARK) if isinstance(text, str) else text)


class Expected(NamedTuple):
    """What a value of a file must be: in words, and whether one is it."""

    words: str
    fits: Callable[[Any], bool]


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError for anything else."""
    found: dict[str, Any] = _guarded(tomllib.loads, text.removeprefix(_MARK))
    return found


def read_bytes(path: Path, where: str | None = None) -> bytes:
    """The bytes of a regular file of a reasonable size.

    Raises:
        UsageError: a folder, a pipe, a device, or more than 256 MiB; `where` names the option.
        OSError: there is no such file, or it cannot be read.
    """
    if (found := no_file_at(path)) is not None:
        raise UsageError("not a regular file", where=where or str(path), found=f"{path}: {found}", hint="name a file")
    if path.stat().st_size > MOST_TEXT:
        raise UsageError("the file is too large to be what is asked for", where=where or str(path), found=str(path))
    return path.read_bytes()


def _guarded(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
