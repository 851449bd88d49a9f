"""The arrays of every batch, in a scratch folder: one file a batch, written whole, read whole or array by array.

The first batches may stay in memory, up to a bound that does not grow with their number.

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
        memory: bytes of arrays that are kept as they are, without a copy: nobody may edit them afterwards.
    """

    def __init__(self, folder: Path, memory: int = 0) -> None:
        self._folder, self._memory = folder, memory
        self._places: dict[int, dict[str, int]] = {}  # of each batch's arrays in its file, in bytes
        self._held: dict[int, dict[str, NDArray[Any]]] = {}

    def write(self, batch: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep these arrays, in the place of what the batch had."""
        self._held.pop(batch, None)
        self._places.pop(batch, None)
        if _size(arrays) <= self._memory - sum(map(_size, self._held.values())):
            self._held[batch] = {name: _protected(values) for name, values in arrays.items()}
            return
        places = self._places[batch] = {}
        with self._path(batch).open("wb") as file:
            for name, values in arrays.items():
                places[name] = file.tell()
                write_array(file, values, allow_pickle=False)

    def names(self, batch: int) -> Collection[str]:
        """What the batch has."""
        return (self._held if batch in self._held else self._places)[batch].keys()

    def read(self, batch: int, name: str) -> NDArray[Any]:
        """One array of a batch."""
        if batch in self._held:
            return self._held[batch][name]
        with self._path(batch).open("rb") as file:
            file.seek(self._places[batch][name])
            values: NDArray[Any] = read_array(file, allow_pickle=False)
        return values

    def read_all(self, batch: int) -> dict[str, NDArray[Any]]:
        """All arrays of a batch, as they were written."""
        if batch in self._held:
            return dict(self._held[batch])
        with self._path(batch).open("rb") as file:
            return {name: read_array(file, allow_pickle=False) for name in self._places[batch]}

    def fork(self, folder: Path) -> BatchStore:
        """A copy in another empty folder."""
        other = BatchStore(folder, self._memory)
        other._held = dict(self._held)
        for batch, places in self._places.items():
            copyfile(self._path(batch), other._path(batch))
            other._places[batch] = dict(places)
        return other

    def _path(self, batch: int) -> Path:
        return self._folder / str(batch)


def _size(arrays: Mapping[str, NDArray[Any]]) -> int:
    return sum(values.nbytes for values in arrays.values())


def _protected(values: NDArray[Any]) -> NDArray[Any]:
    view = values.view()
    view.flags.writeable = False
    return view
