"""The teacher's outputs: computed without gradients, and once per image where images always look the same.

Remembered outputs lie in memory-mapped files in a temporary folder, float32, row by row in the source's order; they are
all made before the first step, in fixed batches, so that a resumed run reads the same bytes. Nothing is remembered
under augmentation, in several processes, without random access, or past LIMIT bytes.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpusq_onnx.data.prefetch import stream
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.learn.feed import Part
from gpusq_onnx.learn.hardware import Hardware
from gpusq_onnx.learn.settings import TrainingOptions
from gpusq_onnx.learn.views import NetworkView
from gpusq_onnx.progress import Progress
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.torchgraph.call import fed
from gpusq_onnx.torchgraph.network import Network

BATCH = 16
LIMIT = 8 << 30


class Teaching:
    """A teacher on its device; a context manager, since it may hold files."""

    def __init__(self, network: Network, hardware: Hardware, thin: NetworkView | None = None) -> None:
        self._network, self._hardware, self._thin = network, hardware, thin
        self._folder: Scratch | None = None
        self._files: dict[str, NDArray[Any]] = {}
        self._finite: dict[str, Tensor] = {}  # by output or tap: whether all that was given so far is

    def __enter__(self) -> Teaching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()
        if self._folder is not None:
            self._folder.remove()

    def __call__(self, part: Part, inputs: list[Tensor], keep: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs and taps for `inputs`, the images of `part`, in the order of the network's inputs.

        With `keep`, only these tokens go through.
        """
        given = self._answers(part, inputs, keep)
        for name, value in given.items():  # a sum keeps what is not finite, and nobody waits for the device here
            finite = value.detach().sum(dtype=torch.float32).isfinite()
            self._finite[name] = finite & self._finite[name] if name in self._finite else finite
        return given

    def require_finite(self) -> None:
        """Refuse an original model whose outputs or taps were not all finite so far: nothing is learned from it.

        To be asked in all processes at once, after a loss that is not a number.

        Raises:
            UnsupportedModelError: names the tensor.
        """
        if not self._finite:
            return
        failed = self._hardware.add(torch.stack([1.0 - finite.float() for finite in self._finite.values()]))
        for name, processes in zip(self._finite, failed.tolist(), strict=True):
            if processes:
                raise UnsupportedModelError(
                    f"the activation {name!r} of the model as it was holds NaN or infinity",
                    expected="finite numbers for every image",
                    hint="huge weights overflow before it: check the original checkpoint, and the images",
                )

    def _answers(self, part: Part, inputs: list[Tensor], keep: Tensor | None) -> dict[str, Tensor]:
        if keep is not None and self._thin is not None:
            with torch.no_grad(), self._hardware.autocast():
                return self._thin(inputs, (), keep)  # type: ignore[no-any-return]
        if self._files:
            assert part.indices is not None
            rows = {name: torch.from_numpy(file[part.indices]) for name, file in self._files.items()}
            return {name: row.to(self._hardware.device, non_blocking=True) for name, row in rows.items()}
        return self.look(inputs)

    def remember(self, source: Source, settings: TrainingOptions, progress: Progress) -> bool:
        """Run over all images now, where the outputs will serve again; says whether they are remembered."""
        if not settings.remembers or self._hardware.processes > 1 or not source.random_access or len(source) <= BATCH:
            return False
        chunks = [list(range(start, min(start + BATCH, len(source)))) for start in range(0, len(source), BATCH)]
        progress.start("the teacher's answers", len(source))
        for batch in stream(source, [(chunk, None) for chunk in chunks]):
            feed = [fed(batch.feed[name]).to(self._hardware.device) for name in self._network.inputs]
            found = {name: value.float().cpu().numpy() for name, value in self.look(feed).items()}
            if not self._files and not self._open(found, batch.size, len(source)):
                break
            for name, rows in found.items():
                self._files[name][batch.indices] = rows
            progress.advance(batch.size)
        progress.finish()
        return bool(self._files)

    @torch.no_grad()
    def look(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        """Outputs and taps, computed now."""
        with self._hardware.autocast():
            found: dict[str, Tensor] = self._network(*inputs)
        return found

    def _open(self, found: dict[str, NDArray[Any]], rows: int, images: int) -> bool:
        per_image = sum(value.nbytes for value in found.values()) / rows
        if per_image * images > LIMIT or any(value.shape[:1] != (rows,) for value in found.values()):
            return False
        self._folder = Scratch()
        for number, (name, value) in enumerate(found.items()):
            path = self._folder.path / f"{number}.npy"
            shape = (images, *value.shape[1:])
            self._files[name] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        return True
