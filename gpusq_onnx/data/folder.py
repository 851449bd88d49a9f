"""A folder of images: which ones, in which order and with which labels is the part of `listing`."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np

from gpusq_onnx.data.coco import image_ids, read_annotations
from gpusq_onnx.data.images import Images
from gpusq_onnx.data.listing import EXTENSIONS, counted, labels_of, list_images, sample_order
from gpusq_onnx.data.masks import label_maps
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import ImageInputs
from gpusq_onnx.errors import UnsupportedDataError

_TAKEN = "files ending in " + ", ".join(EXTENSIONS)


class ImageFolder(Images):
    """The images under `root`, prepared for one image input.

    Raises on opening: UsageError (classes file missing, option against the model), UnsupportedDataError (no images,
    folders that the classes file does not name).
    """

    def __init__(self, root: Path, options: DataOptions, inputs: ImageInputs) -> None:
        files, ignored = list_images(root)
        if not files:
            raise UnsupportedDataError(
                f"no images in {root}",
                expected=_TAKEN,
                found=counted(ignored, "other file") if ignored else "an empty folder",
                hint="convert images of other formats (.gif, .tif) to one of these" if ignored else None,
            )
        self.annotations = None if options.annotations is None else read_annotations(options.annotations)
        ids = {} if self.annotations is None else image_ids(files, self.annotations, where=str(options.annotations))
        maps = {} if options.masks is None else label_maps(files, options.masks)
        unmapped = len(files) - len(maps) if maps else 0
        files = list(ids) or list(maps) or files
        every = None if options.classes is None else labels_of(files, options.classes)
        chosen = sample_order(files, options.seed)[: options.samples]
        self._chosen = [files[index] for index in chosen]
        labels = None if every is None else np.array([every[index] for index in chosen], dtype=np.int64)
        notes = [f"ignored {counted(ignored, 'other file')}: images are {_TAKEN}"] if ignored else []
        notes += [f"left out {counted(unmapped, 'image')} without a label map"] if unmapped else []
        super().__init__(root, options, inputs, len(chosen), labels, len(files), notes)
        self._ids = np.array([ids[name] for name in self._chosen], np.int64) if ids else None
        self._maps = [maps[name] for name in self._chosen] if maps else None
        self.segmented = bool(maps)

    def digest(self) -> str:
        whole = hashlib.sha256()
        for name in self._chosen:
            whole.update(name.encode("utf-8", "surrogateescape") + b"\0")
            try:
                whole.update(hashlib.sha256((self._root / name).read_bytes()).digest())
            except OSError:  # `batches` names and skips it
                whole.update(b"unreadable")
        return whole.hexdigest()

    def name(self, index: int) -> str:
        return self._chosen[index]

    def _file(self, index: int, in_order: bool) -> Path | BytesIO:
        return self._root / self._chosen[index]
