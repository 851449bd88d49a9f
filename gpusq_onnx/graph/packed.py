"""A model in a file of its own at the size that its sparse weights need, and back, bit for bit.

The file is a safetensors container. Weights that follow 2:4 or 4:8 in pairs along any axis, and INT8 tensors that hold
4-bit values, are stored as `sparsity.packing` says (`values:NAME`, `indices:NAME`); everything else of the model file
and its external data is stored as it is, with those weights cut out (`rest:FILE`). One metadata entry, JSON, says what
goes where and holds the SHA-256 of every file: what is restored is the very file, or nothing.

The same model gives the same bytes. Limits: float32 weights keep their 32 bits (17 a weight at 2:4); weights that are
not raw bytes in the model (typed fields) stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from pydantic import TypeAdapter, ValidationError

from gpusq_onnx.errors import NothingMatched, UnsupportedModelError, UsageError
from gpusq_onnx.files import atomic_write
from gpusq_onnx.graph.io import file_digest, read_proto
from gpusq_onnx.graph.payload import SUB_BYTE, Payload
from gpusq_onnx.pipeline.progress import NullProgress, Progress, track
from gpusq_onnx.sparsity.packing import Packed, bits_a_weight, pack, unpack

KEY, FORMAT = "gpusq_onnx", 1


@dataclass(frozen=True)
class StoredFile:
    """A file of the model: its name, size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredWeight:
    """A packed weight: where its bytes start in file number `file`, its stored shape, and how it is packed.

    `axis` is the one that the groups run along; `itemsize` are the bytes of an element.
    """

    name: str
    file: int
    start: int
    dims: tuple[int, ...]
    axis: int
    itemsize: int
    pattern: str
    width: int

    @property
    def bytes(self) -> int:
        """Its bytes in the model."""
        return math.prod(self.dims) * self.itemsize

    @property
    def bits(self) -> float:
        """Bits a weight, packed."""
        return bits_a_weight(self.pattern, self.width)


@dataclass(frozen=True)
class Contents:
    """What a packed file says of itself."""

    format: int
    files: tuple[StoredFile, ...]
    weights: tuple[StoredWeight, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Found:
    """An initializer's raw bytes in a file."""

    tensor: TensorProto
    file: Path
    start: int
    data: NDArray[np.uint8]


def pack_model(path: Path, target: Path, progress: Progress = NullProgress()) -> Contents:  # noqa: B008 - stateless
    """Pack the model at `path`, and its external data, into `target`, which appears complete or not at all.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: not ONNX, or external data that is missing or in another folder.
        NothingMatched: no weight can be packed.
    """
    from safetensors.numpy import save

    found = sorted(_raw_weights(path), key=lambda weight: (weight.file != path, str(weight.file), weight.start))
    paths = list(dict.fromkeys([path, *(weight.file for weight in found)]))
    tensors: dict[str, NDArray[Any]] = {}
    weights: list[StoredWeight] = []
    ends = [0] * len(paths)
    for weight in track(progress, found, "packing weights", len(found)):
        file, end = paths.index(weight.file), weight.start + len(weight.data)
        best = _smallest(weight) if weight.start >= ends[file] else None  # two names for the same bytes: once
        if best is None:
            continue
        axis, packed = best
        name = weight.tensor.name
        tensors |= {f"values:{name}": packed.values, f"indices:{name}": packed.indices}
        dims, shape = tuple(weight.tensor.dims), (packed.itemsize, packed.pattern, packed.width)
        weights.append(StoredWeight(name, file, weight.start, dims, axis, *shape))
        ends[file] = end
    if not weights:
        raise NothingMatched(
            "no weight of the model can be packed",
            where=str(path),
            expected="weights that are 2:4 or 4:8 in pairs, or 4-bit values in INT8",
            hint="prune24 makes them 2:4, and qdq-int8{weights=int8} stores them as INT8",
        )
    for number, file_path in enumerate(paths):
        tensors[f"rest:{number}"] = _rest(file_path, [weight for weight in weights if weight.file == number])
    files = tuple(StoredFile(p.name, p.stat().st_size, file_digest(p)) for p in paths)
    contents = Contents(FORMAT, files, tuple(weights))
    text = json.dumps(contents.to_dict(), separators=(",", ":"))
    with atomic_write(target) as (file_out,):
        file_out.write(save(tensors, {KEY: text}))  # one entry: safetensors orders several at random
    return contents


def read_contents(path: Path) -> Contents:
    """What is in the packed file at `path`. Raises UsageError where there is none, UnsupportedModelError for others."""
    return _open(path)[0]


def unpack_model(path: Path, target: Path) -> Contents:
    """Restore the model to `target`, its external data beside it under the names that the model knows.

    Raises:
        UsageError: no such file, or a file of that name with other contents is in the way of the external data.
        UnsupportedModelError: no packed model, or a damaged one; nothing is written.
    """
    contents, tensors = _open(path)
    places = [target, *(target.with_name(file.name) for file in contents.files[1:])]
    if len(set(places)) < len(places):
        raise UsageError("the model and its external data would have one name", where=str(target), hint="use another")
    for place, file in zip(places[1:], contents.files[1:], strict=True):
        if place.exists() and (not place.is_file() or file_digest(place) != file.sha256):
            raise UsageError("a file is in the way of the external data", where=str(place), hint="use another folder")
    with atomic_write(*places[1:], target) as (*data_files, model_file):
        for number, out in enumerate([model_file, *data_files]):
            digest, left = hashlib.sha256(), contents.files[number].bytes
            for part in _parts(number, contents, tensors, path):
                left -= len(part)
                if left < 0:
                    raise _damaged(path, f"{contents.files[number].name!r} is larger than it was")
                digest.update(part)
                out.write(part)
            if digest.hexdigest() != contents.files[number].sha256:
                raise _damaged(path, f"{contents.files[number].name} does not come back as it was")
    return contents


def _raw_weights(path: Path) -> Iterable[_Found]:
    """Initializers of the main graph with at least two axes whose bytes lie raw in a file."""
    proto, embedded = read_proto(path)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) < 2 or tensor.data_type in SUB_BYTE or tensor.data_type == TensorProto.STRING:
            continue
        payload = Payload(tensor, path.parent, embedded.get(tensor.name))
        mapped = payload.mapped
        if mapped is None or payload.dtype.itemsize not in (1, 2, 4):
            continue
        file, start = path, 0
        if payload.external:
            file = payload.file
            start = int(next((entry.value for entry in tensor.external_data if entry.key == "offset"), 0))
            if file.parent != path.resolve().parent:
                raise UnsupportedModelError("external data in a folder of its own cannot be packed", where=str(file))
        else:
            start = int(mapped.ctypes.data - mapped.base.ctypes.data)  # type: ignore[union-attr]
        yield _Found(tensor, file, start, mapped)


def _smallest(weight: _Found) -> tuple[int, Packed] | None:
    """The axis and the form that take the fewest bits; checked to come back."""
    size = len(weight.data) // max(1, math.prod(weight.tensor.dims))
    codes = np.frombuffer(weight.data.tobytes(), f"<u{size}").reshape(tuple(weight.tensor.dims))
    best: tuple[int, Packed] | None = None
    for axis in range(codes.ndim):
        moved = np.moveaxis(codes, axis, -1).reshape(-1, codes.shape[axis])
        packed = pack(moved)
        if packed is not None and (best is None or packed.bits < best[1].bits):
            assert np.array_equal(unpack(packed), moved), weight.tensor.name
            best = axis, packed
    return best


def _rest(path: Path, weights: Sequence[StoredWeight]) -> NDArray[np.uint8]:
    """The file's bytes without those of the weights, which are in order."""
    whole: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    starts = [0, *(weight.start + weight.bytes for weight in weights)]
    ends = [*(weight.start for weight in weights), len(whole)]
    return np.concatenate([whole[start:end] for start, end in zip(starts, ends, strict=True)])


def _open(path: Path) -> tuple[Contents, Mapping[str, NDArray[Any]]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError("no such file", where=str(path), hint="check the path")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if text else {}  # noqa: SIM118 - no mapping
        contents = TypeAdapter(Contents).validate_json(text or "")
    except (SafetensorError, ValidationError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None
    if contents.format != FORMAT:
        raise UnsupportedModelError(
            "the file was packed by a newer gpusq-onnx", where=str(path), found=f"format {contents.format}"
        )
    for problem in _contradictions(contents, tensors):
        raise _damaged(path, problem)
    return contents, tensors


def _contradictions(contents: Contents, tensors: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """What the table of contents says that cannot be, before a byte is written for it."""
    names = [file.name for file in contents.files]
    if not names or len(set(names)) < len(names):
        yield "no files, or two of one name"
    if any(Path(name).name != name or name.startswith(".") or not name.isprintable() for name in names):
        yield "file names that are paths, hidden or no text"
    ends = [0] * len(names)
    sizes = [tensors[f"rest:{n}"].nbytes if f"rest:{n}" in tensors else -1 for n in range(len(names))]
    for weight in contents.weights:
        if not 0 <= weight.file < len(names) or weight.axis not in range(len(weight.dims)) or min(weight.dims) < 0:
            yield f"the weight {weight.name!r} lies nowhere"
            return
        if weight.start < ends[weight.file]:
            yield f"the weight {weight.name!r} overlaps another one"
        ends[weight.file] = weight.start + weight.bytes
        sizes[weight.file] += weight.bytes
    for file, size in zip(contents.files, sizes, strict=True):
        if size != file.bytes:
            yield f"{file.name!r} of {file.bytes} bytes, and there are {size}"


def _parts(
    number: int, contents: Contents, tensors: Mapping[str, NDArray[Any]], path: Path
) -> Iterable[memoryview | bytes]:
    """The bytes of one file in order."""
    try:
        rest, at, taken = tensors[f"rest:{number}"], 0, 0
        for weight in (weight for weight in contents.weights if weight.file == number):
            between = weight.start - at
            yield rest[taken : taken + between].tobytes()
            packed = _restored(weight, tensors)
            if len(packed) != weight.bytes:
                raise ValueError(f"the weight {weight.name!r} has {len(packed)} bytes, {weight.bytes} were declared")
            yield packed
            taken, at = taken + between, weight.start + weight.bytes
        yield rest[taken:].tobytes()
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
        raise _damaged(path, str(error)) from None


def _restored(weight: StoredWeight, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    moved = [size for axis, size in enumerate(weight.dims) if axis != weight.axis] + [weight.dims[weight.axis]]
    shape = math.prod(moved[:-1]), moved[-1]
    values, indices = tensors[f"values:{weight.name}"], tensors[f"indices:{weight.name}"]
    packed = Packed(weight.pattern, weight.width, shape, weight.itemsize, values, indices)
    return np.moveaxis(unpack(packed).reshape(moved), -1, weight.axis).tobytes()


def _damaged(path: Path, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "not a packed model, or a damaged one",
        where=str(path),
        expected="what gpusq-onnx pack wrote",
        found=found,
        hint="copy the file again",
    )
