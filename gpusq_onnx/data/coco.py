"""COCO annotations: which images a JSON file is about, their ids, and its categories.

Layout: {"images": [{"id", "file_name", "width", "height"}], "annotations": [{"image_id", "category_id", "bbox", ...}],
"categories": [{"id", "name"}]}; bbox is x, y, width, height in pixels. Source: cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpusq_onnx.errors import UnsupportedDataError, UsageError
from gpusq_onnx.parsing import Expected, parse_json, read_bytes

TABLES = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id",),
}


def read_annotations(file: Path) -> dict[str, Any]:
    """The file as it is. Raises UsageError (no such file), UnsupportedDataError (not COCO annotations of boxes)."""
    try:
        found = parse_json(read_bytes(file, "--annotations"))
    except OSError as error:
        raise UsageError(
            f"cannot read the annotations {file}", where="--annotations", found=error.strerror or str(error)
        ) from error
    except ValueError as error:
        raise UnsupportedDataError(f"{file} is not JSON", where="--annotations", found=str(error)) from error
    for table, keys in TABLES.items():
        rows = found.get(table) if isinstance(found, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(keys) for row in rows):
            raise UnsupportedDataError(
                f"{file} is not COCO annotations of boxes",
                where=f'"{table}"',
                expected=f"a list of objects with {', '.join(keys)}",
                found="no list" if not isinstance(rows, list) else "an object that lacks one of them",
                hint="the file is called instances_*.json in COCO",
            )
        for number, row in enumerate(rows):
            wrong = [key for key in KINDS if key in row and not KINDS[key].fits(row[key])]
            if wrong:
                raise UnsupportedDataError(
                    f"{file} is not COCO annotations of boxes",
                    where=f'"{table}", entry {number}, "{wrong[0]}"',
                    expected=KINDS[wrong[0]].words,
                    found=f"{row[wrong[0]]!r:.80}",
                )
    return dict(found)


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _size(value: Any) -> bool:
    return _measure(value) and value > 0


def _measure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_measure, value))


def _name(value: Any) -> bool:
    return isinstance(value, str)


def _area(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18


def _flag(value: Any) -> bool:
    return isinstance(value, (int, bool)) and value in (0, 1)


KINDS: Mapping[str, Expected] = {
    **dict.fromkeys(("id", "image_id", "category_id"), Expected("a whole number of at most 64 bits", _number)),
    **dict.fromkeys(("width", "height"), Expected("a size in pixels, above 0", _size)),
    "bbox": Expected("four finite numbers: x, y, width, height", _box),
    **dict.fromkeys(("file_name", "name"), Expected("a text", _name)),
    "area": Expected("a finite number", _area),
    "iscrowd": Expected("0 or 1", _flag),
}
"""What the values of the known keys are."""


def image_ids(files: Sequence[str], annotations: Mapping[str, Any], *, where: str) -> dict[str, int]:
    """The id of each of `files` (relative POSIX paths) that the annotations are about, in the files' order.

    Raises UnsupportedDataError when there are none, or one is not there.
    """
    ids = {str(image["file_name"]): int(image["id"]) for image in annotations["images"]}
    if not ids:
        raise UnsupportedDataError("the annotations name no images", where=where)
    missing = sorted(ids.keys() - set(files))
    if missing:
        raise UnsupportedDataError(
            f"{len(missing)} of {len(ids)} annotated images are not in the folder",
            where=where,
            expected="every file_name below the folder of --data",
            found=f"no {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}",
            hint="point --data at the folder that the names start from",
        )
    return {file: ids[file] for file in files if file in ids}
