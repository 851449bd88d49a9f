"""The file that `pack` writes: a safetensors container with a table of contents, written and read piece by piece.

    values:NAME, indices:NAME   a packed weight (`sparsity.packing`)
    scale:NAME                  the scales that a weight's floats are made with, as they lie in the model
    rest:N                      what is left of file number N, compressed: zlib streams end to end
    metadata                    one entry, JSON: `Contents`

Before anything is written, every declared size is checked against what is there: `problems`. Format 1 (no scales, the
rest as it is) can be read.

Source: safetensors' format (8 bytes of length, a JSON header, the tensors end to end). The header is written here: the
library takes all tensors at once.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.files import atomic_write, present
from gpusq_onnx.graph.pack.scaling import ELEMENTS, GRIDS, Scaling
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.sparsity.packing import PackedForm

KEY, FORMAT = "gpusq_onnx", 2

PIECE = 1 << 20  # bytes of the rest that are compressed together
_LEVEL, _PROBE, _FED = 6, 1 << 16, 1 << 16
_MOST = 1032  # deflate makes at most so many bytes of one
_WIDTHS = ((1, 4), (1, 8), (2, 16), (4, 32))  # bytes of an element, bits of its values
_SCALES = {**ELEMENTS, **{grid: 1 for grid, bits in GRIDS.items() if bits == 8}}


@dataclass(frozen=True)
class StoredFile:
    """A file of the model.

    Attributes:
        name: its name.
        bytes: its size.
        sha256: in hex.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredScale:
    """Scales, cut out of a file.

    Attributes:
        name, dims: of the initializer.
        file, start: the number of its file, and the byte where they start.
        element: their type, by its numpy name.
    """

    name: str
    file: int
    start: int
    dims: tuple[int, ...]
    element: str

    @property
    def bytes(self) -> int:
        """Its bytes in the model."""
        return math.prod(self.dims) * _SCALES.get(self.element, 0)


@dataclass(frozen=True)
class StoredWeight:
    """A packed weight.

    Attributes:
        name, dims: of the initializer.
        file, start: the number of its file, and the byte where it starts.
        axis: the one that the groups run along.
        itemsize: bytes of a code.
        pattern, width: see `sparsity.packing.PackedForm`.
        nibbles: the model stores two elements a byte.
        scaling: what makes the model's floats of the codes; None: the model stores the codes.
    """

    name: str
    file: int
    start: int
    dims: tuple[int, ...]
    axis: int
    itemsize: int
    pattern: str
    width: int
    nibbles: bool = False
    scaling: Scaling | None = None

    @property
    def bytes(self) -> int:
        """Its bytes in the model."""
        count = math.prod(self.dims)
        if self.scaling is not None:
            return count * ELEMENTS.get(self.scaling.element, 0)
        return (count + 1) // 2 if self.nibbles else count * self.itemsize

    @property
    def form(self) -> PackedForm:
        """Pattern and width."""
        return PackedForm(self.pattern, self.width)

    @property
    def bits(self) -> float:
        """Bits a weight, packed."""
        return self.form.bits

    @property
    def moved(self) -> tuple[int, ...]:
        """The shape with the groups' axis last."""
        return (*(size for axis, size in enumerate(self.dims) if axis != self.axis), self.dims[self.axis])

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of the matrix that is packed: [rows, k]."""
        return math.prod(self.moved[:-1]), self.moved[-1]


@dataclass(frozen=True)
class Contents:
    """What a packed file says of itself.

    Attributes:
        format: the number of the layout.
    """

    format: int
    files: tuple[StoredFile, ...]
    weights: tuple[StoredWeight, ...]
    scales: tuple[StoredScale, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @property
    def cut(self) -> list[StoredWeight | StoredScale]:
        """All that is cut out of the files."""
        return [*self.weights, *self.scales]

    def pieces(self, number: int) -> list[StoredWeight | StoredScale]:
        """What is cut out of one file, in order."""
        return sorted((piece for piece in self.cut if piece.file == number), key=lambda piece: piece.start)

    @property
    def sizes(self) -> tuple[int, int]:
        """The bytes of all packed weights and of all scales."""
        return sum(sum(w.form.sizes(*w.matrix)) for w in self.weights), sum(s.bytes for s in self.scales)


class ContainerWriter:
    """Writes a container; the tensors wait in a scratch file, since the header with their sizes comes first."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = file, 0
        self._header: dict[str, Any] = {}

    def add(self, name: str, parts: Iterable[memoryview | bytes]) -> None:
        """A tensor of bytes, given in parts."""
        start = self._at
        for part in parts:
            self._at += self._file.write(part)
        self._header[name] = {"dtype": "U8", "shape": [self._at - start], "data_offsets": [start, self._at]}

    def finish(self, out: BinaryIO, contents: Contents) -> None:
        """Write header and tensors."""
        table = json.dumps(contents.to_dict(), separators=(",", ":"))
        text = json.dumps({"__metadata__": {KEY: table}, **self._header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        out.write(len(text).to_bytes(8, "little") + text)
        self._file.seek(0)
        shutil.copyfileobj(self._file, out, 1 << 22)


class ContainerReader:
    """A container's tensors, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError where there is no file, UnsupportedModelError for one that is not ours or contradictory."""
        from safetensors import SafetensorError, safe_open

        self.path = path
        if not path.is_file():
            raise UsageError("no such file", where=str(path), hint="check the path")
        try:
            opened: Any = safe_open(path, framework="np")
            self.contents = TypeAdapter(Contents).validate_json((opened.metadata() or {}).get(KEY, ""))
            self._sizes = {name: _size(opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118 - no mapping
            self._file = opened
        except (SafetensorError, ValidationError, OSError) as error:
            raise self.damaged(str(error).splitlines()[0]) from None
        if self.contents.format not in (1, FORMAT):
            raise UnsupportedModelError(
                "the file was packed by a newer gpusq-onnx", where=str(path), found=f"format {self.contents.format}"
            )
        for problem in problems(self.contents, self._sizes):
            raise self.damaged(problem)

    def tensor(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor."""
        found: NDArray[np.uint8] = self._file.get_tensor(name)
        return found

    def rest(self, number: int) -> Iterator[bytes]:
        """What is left of a file, in parts."""
        name = f"rest:{number}"
        data, size, at = self._file.get_slice(name), self._sizes[name], 0
        if self.contents.format == 1:
            yield from (data[at : min(size, at + PIECE)].tobytes() for at in range(0, size, PIECE))
            return
        try:
            while at < size:
                stream = zlib.decompressobj()
                while not stream.eof:
                    fed = stream.unconsumed_tail
                    if not fed and at < size:  # a slice that begins at the end is an error
                        fed = data[at : min(size, at + _FED)].tobytes()
                    at += 0 if stream.unconsumed_tail else len(fed)
                    part = stream.decompress(fed, PIECE)
                    if not (part or fed or stream.eof):
                        raise self.damaged(f"{name} ends too early")
                    yield part
                at -= len(stream.unused_data)
        except zlib.error as error:
            raise self.damaged(str(error)) from None

    def damaged(self, found: str) -> UnsupportedModelError:
        """The error of a file that cannot be unpacked."""
        return UnsupportedModelError(
            "not a packed model, or a damaged one",
            where=str(self.path),
            expected="what gpusq-onnx pack wrote",
            found=found,
            hint="copy the file again",
        )


def _size(found: Any) -> int:
    """The bytes of a tensor of bytes; -1 for others."""
    return math.prod(found.get_shape()) if found.get_dtype() == "U8" and len(found.get_shape()) == 1 else -1


def write(target: Path, fill: Callable[[ContainerWriter], Contents]) -> Contents:
    """A container at `target`, complete or not at all; `fill(writer)` adds the tensors and returns the contents."""
    with present(target.parent), Scratch(target.parent) as folder, (folder / "tensors").open("w+b") as tensors:
        writer = ContainerWriter(tensors)
        contents = fill(writer)
        with atomic_write(target) as (out,):
            writer.finish(out, contents)
    return contents


def compressed(parts: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    """The parts end to end, `PIECE` bytes a zlib stream; left as they are where that saves less than 5 %."""
    for piece in _in_pieces(parts):
        middle = piece[len(piece) // 2 :][:_PROBE]
        level = _LEVEL if len(zlib.compress(middle, _LEVEL)) < 0.95 * len(middle) else 0
        yield zlib.compress(piece, level)


def _in_pieces(parts: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    waiting = bytearray()
    for part in parts:
        for at in range(0, len(part), PIECE):
            waiting += part[at : at + PIECE].tobytes()
            while len(waiting) >= PIECE:
                yield bytes(waiting[:PIECE])
                del waiting[:PIECE]
    if waiting:
        yield bytes(waiting)


def problems(contents: Contents, tensors: dict[str, int]) -> Iterator[str]:
    """What cannot be in a table of contents, given the tensors' sizes in bytes (-1: not bytes), before any is read."""
    names = [file.name for file in contents.files]
    if not names or len(set(names)) < len(names):
        yield "no files, or two of one name"
    if any(Path(name).name != name or name.startswith(".") or not name.isprintable() for name in names):
        yield "file names that are paths, hidden or no text"
    if len({piece.name for piece in contents.cut}) < len(contents.cut):
        yield "two weights or scales of one name"
    scales = {scale.name: scale for scale in contents.scales}
    for piece in contents.cut:
        if not 0 <= piece.file < len(names) or min(piece.dims, default=0) < 0:
            yield f"{piece.name!r} lies nowhere"
            return
        found = _of_weight(piece, tensors, scales) if isinstance(piece, StoredWeight) else _of_scale(piece, tensors)
        yield from found
    for number, file in enumerate(contents.files):
        yield from _of_file(number, file, contents, tensors.get(f"rest:{number}", -1))


def _of_weight(weight: StoredWeight, tensors: dict[str, int], scales: dict[str, StoredScale]) -> Iterator[str]:
    if weight.axis not in range(len(weight.dims)):
        yield f"the weight {weight.name!r} lies nowhere"
        return
    if (weight.itemsize, weight.width) not in _WIDTHS:
        yield f"values of {weight.width} bits in elements of {weight.itemsize} bytes"
        return
    try:
        needed = weight.form.sizes(*weight.matrix)
    except ValueError as error:
        yield str(error)
        return
    for what, size in zip(("values", "indices"), needed, strict=True):
        found = tensors.get(f"{what}:{weight.name}", -1)
        if found != size:
            yield f"{size} bytes of {what} of {weight.name!r} are declared, and there are {found}"
    if weight.nibbles and weight.width != 4:
        yield f"two elements a byte of {weight.width} bits"
    scaling = weight.scaling
    if scaling is not None:
        known = scaling.scale in scales and (not scaling.outer or scaling.outer in scales)
        if not known or weight.itemsize != 1 or weight.nibbles or not scaling.fits(weight.dims):
            yield f"the scales of {weight.name!r} do not fit it"


def _of_scale(scale: StoredScale, tensors: dict[str, int]) -> Iterator[str]:
    found = tensors.get(f"scale:{scale.name}", -1)
    if scale.element not in _SCALES or found != scale.bytes:
        yield f"{scale.bytes} bytes of the scale {scale.name!r} are declared, and there are {found}"


def _of_file(number: int, file: StoredFile, contents: Contents, rest: int) -> Iterator[str]:
    pieces: Sequence[StoredWeight | StoredScale] = contents.pieces(number)
    end = 0
    for piece in pieces:
        if piece.start < end:
            yield f"{piece.name!r} overlaps another one"
        end = piece.start + piece.bytes
    left = file.bytes - sum(piece.bytes for piece in pieces)
    if end > file.bytes or rest < 0 or (left != rest if contents.format == 1 else not 0 <= left <= _MOST * rest):
        yield f"{file.name!r} of {file.bytes} bytes, and its parts do not make as many"
