"""What was measured before, kept as JSON under the digest of all that it depends on: what was cut short goes on.

Where the folder cannot be used, nothing is kept and nothing found, and `problem` says so: the work goes on without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpusq_onnx import __version__
from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.files import write_text
from gpusq_onnx.parsing import parse_json
from gpusq_onnx.runtime.store import Store
from gpusq_onnx.scratch import Scratch

_FORMAT = 3  # of what is kept and of how it was measured; another number, measured anew


class Kept:
    """Results of one kind.

    Args:
        folder: where they are; None: nothing is kept, and nothing found.
        kind: "sensitivity", "tune".
        common: what all results depend on.

    Attributes:
        problem: a sentence for a person on why nothing is kept; "": it is, or nobody asked for it.
    """

    def __init__(self, folder: Path | None, kind: str, common: Mapping[str, Any]) -> None:
        self._folder = folder
        self._store = None if folder is None else Store(folder, kind)
        self._common = {"format": _FORMAT, "version": __version__, **common}
        self.problem = ""
        if self._store is not None:
            try:
                self._store.require_place("results")
            except (UsageError, EnvironmentLacking) as error:
                self._set_problem(f"{error.what} in {error.details['where']}")

    def find(self, **key: Any) -> Any:
        """The plain values that were kept under this key; None: there are none."""
        try:
            entry = None if self._store is None else self._store.find(self._common | key)
            return None if entry is None else parse_json(entry.file.read_text(encoding="utf-8"))
        except OSError:
            return None

    def keep(self, value: Any, **key: Any) -> None:
        """Keep plain values under this key."""
        if self._store is None or self.problem:
            return
        try:
            with Scratch() as folder:
                write_text(folder / "value.json", json.dumps(value))
                self._store.keep(self._common | key, folder / "value.json", {})
        except OSError as error:
            self._set_problem(error.strerror or str(error))
        except EnvironmentLacking as error:
            self._set_problem(f"{error.what}: {error.details['found']}")

    def _set_problem(self, reason: str) -> None:
        self.problem = f"new results are not kept in {self._folder}, and a later run measures them again: {reason}"
