"""A folder of images as a stream of batches: decode, prepare, skip what is corrupt.

Which images, in which order and with which labels is the part of `listing`; how one becomes a tensor, of `preprocess`.
Corrupt images are named, skipped and counted; more than 1 % of the chosen ones is an error. The next batch is decoded
in one background thread (Pillow releases the GIL); memory is three batches: the one in use, the next, the one after.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpusq_onnx.data.listing import EXTENSIONS, labels_of, list_images, sample_order
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import Geometry, for_input
from gpusq_onnx.data.source import Batch, InputSpec, Source, fill_up, too_few
from gpusq_onnx.errors import UnsupportedDataError

MAX_CORRUPT = 0.01


class ImageFolder(Source):
    """The images under `root`, prepared for one image input.

    Raises on opening: UsageError (classes file missing, option against the model), UnsupportedDataError (no images,
    folders that the classes file does not name).
    """

    kind = "images"

    def __init__(self, root: Path, options: DataOptions, spec: InputSpec) -> None:
        self._root = root
        self._preprocess = for_input(options, spec)
        files, ignored = list_images(self._root)
        if not files:
            raise UnsupportedDataError(
                f"no images in {self._root}",
                expected="files ending in " + ", ".join(EXTENSIONS),
                found=f"{ignored} other files" if ignored else "an empty folder",
            )
        labels = None if options.classes is None else labels_of(files, options.classes)
        chosen = sample_order(files, options.seed)[: options.samples]
        self._chosen = [files[index] for index in chosen]
        self._labels = None if labels is None else np.array([labels[index] for index in chosen], dtype=np.int64)
        self.labelled = labels is not None
        self._corrupt: dict[int, str] = {}
        self._geometry: dict[int, Geometry] = {}
        self._opening_notes = _opening_notes(options, spec, len(files), ignored)

    def __len__(self) -> int:
        return len(self._chosen)

    def batches(self, batch: int) -> Iterator[Batch]:
        size = self._preprocess.spec.static_batch or batch
        chunks = [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        # One worker: batches come in order, and leaving early waits for one batch at most.
        with ThreadPoolExecutor(max_workers=1) as pool:
            pending = pool.submit(self._load, chunks[0])
            for chunk in chunks[1:]:
                loaded, pending = pending.result(), pool.submit(self._load, chunk)
                if loaded is not None:
                    yield loaded
            loaded = pending.result()
        if loaded is not None:
            yield loaded

    def digest(self) -> str:
        whole = hashlib.sha256()
        for name in self._chosen:
            whole.update(name.encode("utf-8", "surrogateescape") + b"\0")
            try:
                whole.update(hashlib.sha256((self._root / name).read_bytes()).digest())
            except OSError:  # `batches` names and skips it
                whole.update(b"unreadable")
        return whole.hexdigest()

    @property
    def skipped(self) -> list[str]:
        return [f"{self._chosen[index]}: {reason}" for index, reason in sorted(self._corrupt.items())]

    @property
    def notes(self) -> list[str]:
        notes = list(self._opening_notes)
        if self._corrupt:
            count = f"{len(self._corrupt)} of {len(self)} images cannot be read and are left out"
            notes.append(f"{count}: {'; '.join(self.skipped)}")
        done = Counter(self._geometry.values())
        crop = f"{self._preprocess.height}x{self._preprocess.width}"
        if done["cropped only"]:
            notes.append(f"{done['cropped only']} images no larger than the resize were cropped only")
        if done["enlarged"]:
            notes.append(f"{done['enlarged']} images smaller than the crop {crop} were enlarged to it")
        return notes

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "preprocess": self._preprocess.describe()}

    def _load(self, chunk: range) -> Batch | None:
        """The readable images of `chunk`; None when there is none."""
        rows = np.empty((len(chunk), *self._preprocess.shape), dtype=self._preprocess.spec.dtype)
        kept: list[int] = []
        for index in chunk:
            image = self._decode(index)
            if image is not None:
                self._geometry[index] = self._preprocess.write(image, rows[len(kept)])
                kept.append(index)
        if not kept:
            return None
        labels = None if self._labels is None else self._labels[kept]
        filled = fill_up(rows[: len(kept)], self._preprocess.spec.static_batch)
        return Batch({self._preprocess.spec.name: filled}, labels, len(kept))

    def _decode(self, index: int) -> Image.Image | None:
        try:
            with Image.open(self._root / self._chosen[index]) as image:
                image.load()  # reads to the end: leaving `with` closes the file, the pixels stay
                return image
        except Exception as error:  # Pillow's decoders raise whatever the bytes make them raise
            self._corrupt[index] = str(error) or type(error).__name__
        if len(self._corrupt) > MAX_CORRUPT * len(self):
            raise UnsupportedDataError(
                f"{len(self._corrupt)} of {len(self)} images cannot be read",
                where=str(self._root),
                expected=f"at most {MAX_CORRUPT:.0%}",
                found="; ".join(self.skipped[:5]),
                hint="remove or replace these files",
            )
        return None


def _opening_notes(options: DataOptions, spec: InputSpec, available: int, ignored: int) -> list[str]:
    notes = too_few(options.samples, available)
    if ignored:
        notes.append(f"{ignored} files that are not images were ignored")
    if spec.dtype.name == "uint8":
        notes.append(f"input {spec.name!r} takes uint8: pixels go in as 0..255, mean and std are not applied")
    return notes
