"""The arrays of every batch, in a scratch folder: one file a batch, written whole, read whole or array by array.

A file is arrays in numpy's own format, one after the other; where each begins is remembered. An .npz does the same with
check sums, which took an eighth of SparseGPT's time (ViT-Tiny, 64 images).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

from numpy.lib.format import read_array, write_array
from numpy.typing import NDArray


class BatchStore:
    """Reads and writes them.

    Args:
        folder: an empty scratch folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[int, dict[str, int]] = {}  # of each batch's arrays, in bytes

    def write(self, batch: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep these arrays, in the place of what the batch had."""
        places = self._places[batch] = {}
        with self._path(batch).open("wb") as file:
            for name, values in arrays.items():
                places[name] = file.tell()
                write_array(file, values, allow_pickle=False)

    def names(self, batch: int) -> Collection[str]:
        """What the batch has."""
        return self._places[batch].keys()

    def read(self, batch: int, name: str) -> NDArray[Any]:
        """One array of a batch."""
        with self._path(batch).open("rb") as file:
            file.seek(self._places[batch][name])
            values: NDArray[Any] = read_array(file, allow_pickle=False)
        return values

    def read_all(self, batch: int) -> dict[str, NDArray[Any]]:
        """All arrays of a batch, as they were written."""
        with self._path(batch).open("rb") as file:
            return {name: read_array(file, allow_pickle=False) for name in self._places[batch]}

    def fork(self, folder: Path) -> BatchStore:
        """A copy in another empty folder."""
        other = BatchStore(folder)
        for batch, places in self._places.items():
            copyfile(self._path(batch), other._path(batch))
            other._places[batch] = dict(places)
        return other

    def _path(self, batch: int) -> Path:
        return self._folder / str(batch)
