"""Results kept between runs, under the digest of everything that they depend on.

    engine    model and external data, TensorRT's version, GPU and driver, every option
    timings   the same without the model and its shapes: a timing is of a layer, whatever model it is in
    others    sensitivities and measurements of configurations (`tuning.kept`)

(TensorRT developer guide, "Timing Cache": specific to device, CUDA, TensorRT and options that change implementations.)
An entry is two files, `KEY.bin` and `KEY.json`; the second holds the key in full, notes, and a digest of the first and
of the notes, and is written last. An entry that does not agree with itself or with what was asked for, or that another
user may have written, is not there: it is built again.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusq_onnx.files import atomic_write, foreign, require_place
from gpusq_onnx.graph.io import file_digest
from gpusq_onnx.parsing import parse_json
from gpusq_onnx.scratch import sweep

FORMAT = 1  # of the entries; another number, another key


@dataclass(frozen=True)
class StoredEntry:
    """What was found: the file, and what was noted beside it."""

    file: Path
    notes: Mapping[str, Any]


class Store:
    """A folder of entries of one kind ("engines", "timings", ...)."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder / kind

    def require_place(self, what: str) -> None:
        """Refuse a folder where nothing can be kept, before the work starts. Raises as `files.require_place`."""
        require_place(self._folder / "entry", what)

    def find(self, key: Mapping[str, Any]) -> StoredEntry | None:
        """The entry for exactly this key, if it is there and whole; what a killed run left beside it goes."""
        file, card = self._files(key)
        sweep(self._folder)
        try:
            if any(map(foreign, (file, card, self._folder))):
                return None  # an engine is executed: nobody else's is taken
            noted = parse_json(card.read_text(encoding="utf-8"))
            if noted["key"] == _plain(key) and noted["sha256"] == _digest(file, noted["notes"]):
                return StoredEntry(file, noted["notes"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing, cut short, or somebody else's
        return None

    def keep(self, key: Mapping[str, Any], source: Path, notes: Mapping[str, Any]) -> None:
        """Copy `source` in, all or nothing; replaces what was there.

        Raises:
            OSError: the folder cannot be written or is full.
        """
        file, card = self._files(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        noted = {"key": _plain(key), "sha256": _digest(source, notes), "notes": notes}
        with source.open("rb") as read, atomic_write(file, card) as (kept, beside):
            shutil.copyfileobj(read, kept, 1 << 22)
            beside.write(json.dumps(noted, indent=1).encode())

    def _files(self, key: Mapping[str, Any]) -> tuple[Path, Path]:
        digest = hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()[:32]
        return self._folder / f"{digest}.bin", self._folder / f"{digest}.json"


def _digest(file: Path, notes: Mapping[str, Any]) -> str:
    return hashlib.sha256((file_digest(file) + json.dumps(notes, sort_keys=True)).encode()).hexdigest()


def _plain(key: Mapping[str, Any]) -> Any:
    """The key as JSON gives it back."""
    return json.loads(json.dumps({**key, "format": FORMAT}))
