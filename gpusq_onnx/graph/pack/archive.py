"""A model in a file of its own at the size that its sparse and quantised weights need, and back, bit for bit.

What is small in it (`graph.pack.container` has the layout):

    codes           weights stored as INT8, INT4, FP8, ...: in their pattern, as `sparsity.packing` says
    floats of codes weights stored as floats before Q/DQ: code times scale to the bit, so the codes are stored, and the
                    scales once (`graph.pack.scaling`)
    floats          that follow a pattern: the kept ones
    the rest        biases, norms, embeddings, the graph: compressed, with those weights and scales cut out

Each file's SHA-256 is in the table of contents: what is restored is the very file, or nothing. Weights are packed,
written and restored one at a time. The same model gives the same bytes, with the same zlib.

Limits: weights and scales that are not raw bytes in the model (typed fields) are part of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from gpusq_onnx.errors import NothingMatched, UsageError
from gpusq_onnx.files import atomic_write
from gpusq_onnx.graph.io import Digest, file_digest
from gpusq_onnx.graph.pack.container import (
    FORMAT,
    ContainerReader,
    ContainerWriter,
    Contents,
    StoredFile,
    StoredScale,
    StoredWeight,
    compressed,
    write,
)
from gpusq_onnx.graph.pack.scaling import Scaling
from gpusq_onnx.graph.pack.stored import Stored, read_initializers
from gpusq_onnx.graph.payload import SUB_BYTE
from gpusq_onnx.progress import NullProgress, Progress, track
from gpusq_onnx.sparsity.packing import Packed, PackedForm, joined_nibbles, pack, smallest_form, split_nibbles, unpack


def pack_model(path: Path, target: Path, progress: Progress = NullProgress()) -> Contents:  # noqa: B008 - stateless
    """Pack the model at `path`, and its external data, into `target`, which appears complete or not at all.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: not ONNX, or external data that is missing or in another folder.
        NothingMatched: no weight can be packed.
    """
    read = read_initializers(path)
    paths = list(dict.fromkeys([path, *(one.file for one in read.stored)]))
    places = {file: number for number, file in enumerate(paths)}
    by_name = {one.name: one for one in read.stored}
    matrices = [one for one in read.stored if len(one.dims) > 1 and one.name not in read.scales]

    def fill(writer: ContainerWriter) -> Contents:
        with ThreadPoolExecutor(1) as pool:
            digests = [pool.submit(file_digest, file) for file in paths]
            weights = list[StoredWeight]()
            for one in track(progress, matrices, "packing weights", len(matrices)):
                found = _packed(one, read.scalings.get(one.name), by_name)
                if found is not None:
                    axis, packed, scaling = found
                    writer.add(f"values:{one.name}", [packed.values.data])
                    writer.add(f"indices:{one.name}", [packed.indices.data])
                    place = one.name, places[one.file], one.start, one.dims, axis, packed.itemsize
                    weights.append(StoredWeight(*place, packed.pattern, packed.width, _nibbles(one), scaling))
            if not weights:
                raise _nothing(path, matrices)
            scales = _scales(weights, by_name, places)
            for scale in scales:
                writer.add(f"scale:{scale.name}", [by_name[scale.name].data.data])
            cut = Contents(FORMAT, (), tuple(weights), tuple(scales))
            for number, file in enumerate(paths):
                writer.add(f"rest:{number}", compressed(_between(file, cut.pieces(number))))
            files = [StoredFile(p.name, p.stat().st_size, d.result()) for p, d in zip(paths, digests, strict=True)]
        return Contents(FORMAT, tuple(files), cut.weights, cut.scales)

    return write(target, fill)


def read_contents(path: Path) -> Contents:
    """What is in the packed file at `path`. Raises UsageError where there is none, UnsupportedModelError for others."""
    return ContainerReader(path).contents


def unpack_model(path: Path, target: Path) -> Contents:
    """Restore the model to `target`, its external data beside it under the names that the model knows.

    Raises:
        UsageError: no such file, or a file of that name with other contents is in the way of the external data.
        UnsupportedModelError: no packed model, or a damaged one; nothing is written.
    """
    reader = ContainerReader(path)
    files = reader.contents.files
    places = [target, *(target.with_name(file.name) for file in files[1:])]
    if len(set(places)) < len(places):
        raise UsageError("the model and its external data would have one name", where=str(target), hint="use another")
    for place, file in zip(places[1:], files[1:], strict=True):
        if place.exists() and (not place.is_file() or file_digest(place) != file.sha256):
            raise UsageError("a file is in the way of the external data", where=str(place), hint="use another folder")
    with atomic_write(*places[1:], target) as (*data_files, model_file):
        for number, out in enumerate([model_file, *data_files]):
            digest, left = Digest(), files[number].bytes
            for part in _parts(number, reader):
                left -= len(part)
                if left < 0:
                    raise reader.damaged(f"{files[number].name!r} is larger than it was")
                digest.update(part)
                out.write(part)
            if digest.hexdigest() != files[number].sha256:
                raise reader.damaged(f"{files[number].name} does not come back as it was")
    return reader.contents


@dataclass(frozen=True)
class _Best:
    """The axis and the form that take the fewest bits, and the codes with that axis last."""

    axis: int
    form: PackedForm
    codes: NDArray[Any]


def _packed(
    one: Stored, scaling: Scaling | None, by_name: Mapping[str, Stored]
) -> tuple[int, Packed, Scaling | None] | None:
    """The axis, the packed matrix and what makes floats of it; None where nothing is smaller than the weight itself."""
    codes = _codes(one, scaling, by_name) if scaling is not None else None
    if codes is None:
        scaling, codes = None, _raw(one)
    if codes is None or not codes.any():  # a mask of zeros is no weight
        return None
    plain = PackedForm("dense", 8) if scaling is not None or _nibbles(one) else None
    best: _Best | None = None
    for axis in range(codes.ndim):
        moved = np.moveaxis(codes, axis, -1).reshape(-1, codes.shape[axis])
        form = smallest_form(moved) or plain
        if form is not None and (best is None or form.bits < best.form.bits):
            best = _Best(axis, form, moved)
    own = 4 if _nibbles(one) else 8 * len(one.data) / max(1, codes.size)
    if best is None or best.form.bits >= own:
        return None
    packed = pack(best.codes, best.form)
    assert packed is not None, one.name
    return best.axis, packed, scaling


def _codes(one: Stored, scaling: Scaling, by_name: Mapping[str, Stored]) -> NDArray[Any] | None:
    """The codes that floats were made of; None where they were not, or the scales are not at hand."""
    if scaling.scale not in by_name or scaling.outer not in ("", *by_name):
        return None
    try:
        outer = float(by_name[scaling.outer].values().reshape(-1)[0]) if scaling.outer else None
        return scaling.codes(one.values(), scaling.factor(by_name[scaling.scale].values(), outer))
    except ValueError:
        return None


def _raw(one: Stored) -> NDArray[Any] | None:
    """The bits of the stored elements; None for types that are not packed."""
    count = int(np.prod(one.dims))
    if _nibbles(one):
        return split_nibbles(np.asarray(one.data), count).reshape(one.dims)
    size = len(one.data) // max(1, count)
    if one.tensor.data_type in SUB_BYTE or size not in (1, 2, 4):
        return None
    return np.frombuffer(one.data.tobytes(), f"<u{size}").reshape(one.dims)


def _nibbles(one: Stored) -> bool:
    return SUB_BYTE.get(one.tensor.data_type) == 4


def _scales(
    weights: Sequence[StoredWeight], by_name: Mapping[str, Stored], places: Mapping[Path, int]
) -> list[StoredScale]:
    """The scales that packed weights need, each once, in order."""
    needed = (weight.scaling for weight in weights if weight.scaling is not None)
    names = dict.fromkeys(name for scaling in needed for name in (scaling.scale, scaling.outer) if name)
    found = [by_name[name] for name in names]
    return [StoredScale(one.name, places[one.file], one.start, one.dims, one.element) for one in found]


def _between(path: Path, pieces: Sequence[StoredWeight | StoredScale]) -> Iterator[NDArray[np.uint8]]:
    """The file's bytes between the pieces, which are in order."""
    whole: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    at = 0
    for piece in pieces:
        yield whole[at : piece.start]
        at = piece.start + piece.bytes
    yield whole[at:]


def _parts(number: int, reader: ContainerReader) -> Iterator[bytes | memoryview]:
    """The bytes of one file in order."""
    rest, at, waiting = reader.rest(number), 0, b""
    try:
        for piece in reader.contents.pieces(number):
            while at < piece.start:
                waiting = waiting or next(rest, b"")
                if not waiting:
                    raise reader.damaged("the rest of a file is too short")
                part, waiting = waiting[: piece.start - at], waiting[piece.start - at :]
                at += len(part)
                yield part
            restored = _restored(piece, reader) if isinstance(piece, StoredWeight) else _scale_bytes(piece.name, reader)
            if len(restored) != piece.bytes:
                raise reader.damaged(f"{piece.name!r} has {len(restored)} bytes, {piece.bytes} were declared")
            at += len(restored)
            yield restored
        yield waiting
        yield from rest
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
        raise reader.damaged(str(error)) from None


def _restored(weight: StoredWeight, reader: ContainerReader) -> memoryview:
    """The bytes of a weight as they were in the model."""
    values, indices = reader.tensor(f"values:{weight.name}"), reader.tensor(f"indices:{weight.name}")
    packed = Packed(weight.pattern, weight.width, weight.matrix, weight.itemsize, values, indices)
    codes = np.ascontiguousarray(np.moveaxis(unpack(packed).reshape(weight.moved), -1, weight.axis))
    if weight.nibbles:
        return joined_nibbles(codes).data
    if weight.scaling is None:
        return codes.reshape(-1).view(np.uint8).data
    scale, over = _scale_values(weight.scaling.scale, reader), weight.scaling.outer
    outer = float(_scale_values(over, reader).reshape(-1)[0]) if over else None
    return weight.scaling.floats(codes, weight.scaling.factor(scale, outer)).reshape(-1).view(np.uint8).data


def _scale_bytes(name: str, reader: ContainerReader) -> memoryview:
    return reader.tensor(f"scale:{name}").data


def _scale_values(name: str, reader: ContainerReader) -> NDArray[Any]:
    scale = next(scale for scale in reader.contents.scales if scale.name == name)
    return np.frombuffer(_scale_bytes(name, reader), np.dtype(scale.element)).reshape(scale.dims)


def _nothing(path: Path, matrices: Sequence[Stored]) -> NothingMatched:
    codes = sum(len(one.data) <= np.prod(one.dims) for one in matrices)  # of at most 8 bits
    if codes:
        return NothingMatched(
            "packing makes no weight of the model smaller",
            where=str(path),
            expected="weights of a sparsity pattern, or codes in elements wider than they need",
            found=f"{codes} weights stored as codes already, and dense",
            hint="prune24 before quantising makes them 2:4; the file of a dense model is as small as it gets",
        )
    wide = sum(one.tensor.data_type == TensorProto.DOUBLE for one in matrices)
    return NothingMatched(
        "no weight of the model can be packed",
        where=str(path),
        expected="weights of a sparsity pattern, or quantised ones",
        found=f"{wide} weights in float64, which is not packed" if wide else None,
        hint="export the model in float32" if wide else "prune24 makes weights 2:4, qdq-int8 quantises them",
    )
