"""COCO annotations: which images a JSON file is about, their ids, and its categories.

Layout: {"images": [{"id", "file_name", "width", "height"}], "annotations": [{"image_id", "category_id", "bbox", ...}],
"categories": [{"id", "name"}]}; bbox is x, y, width, height in pixels. Source: cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpusq_onnx.errors import UnsupportedDataError, UsageError

TABLES = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id",),
}


def read_annotations(file: Path) -> dict[str, Any]:
    """The file as it is. Raises UsageError (no such file), UnsupportedDataError (not COCO annotations of boxes)."""
    try:
        found = json.loads(file.read_bytes())
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
    return dict(found)


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
