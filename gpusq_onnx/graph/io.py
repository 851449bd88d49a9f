"""Read and write model files: one file or a file with external data, any size, all or nothing.

Reading parses the protobuf without its large initializers, which stay on disk as external data does. Writing streams to
a scratch folder beside the target (see `files`): a full disk, a crash or Ctrl-C leaves the folder as it was. External
data goes out as external data (`model.onnx` + `model.onnx.data`), and so does everything over protobuf's 2 GiB.

The file is a function of the model alone: same model, same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto

from gpusq_onnx.errors import InvariantError, UnsupportedModelError, UsageError
from gpusq_onnx.files import Staging, begin_flush, into, no_file_at
from gpusq_onnx.graph import scan
from gpusq_onnx.graph.door.admission import READABLE, USABLE, admit
from gpusq_onnx.graph.door.arrival import Arrival
from gpusq_onnx.graph.foreign_types import settle_foreign_types
from gpusq_onnx.graph.fp16.transposes import move_transposes
from gpusq_onnx.graph.model import INLINE_BYTES, Large, Model, from_proto, unproduced
from gpusq_onnx.graph.opset import opset_of, raise_opset
from gpusq_onnx.graph.origin import reads
from gpusq_onnx.graph.tidy import confirm_declarations, fill_sparse, spell_domains, tidy_nodes, without_functions
from gpusq_onnx.graph.wire import BinaryWriter, write_model
from gpusq_onnx.graph.wording import node_label

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BLOCKED = "com.microsoft.nchwc"  # what ORT_ENABLE_ALL saves: channels in blocks as wide as the processor's registers
_PROTOBUF_LIMIT = 2**31 - 2**20
_ALIGNMENT = 4096  # external tensors start on a page, so that they can be memory-mapped
_WORTH_MAPPING = 1 << 20  # bytes


_EXPORTS = 'models are ONNX files here: docs/how-to/classifier.md, "Export it", has the commands that export one'
_ELSEWHERE = dict.fromkeys(("timm", "hf", "hf-hub", "https", "http"), _EXPORTS)  # names of other tools for models


def load(path: Path | str) -> Model:
    """Read a model, raised to opset 20 (IR 10) or kept where it is up to opset 25, without what runtimes refuse.

    Calls of local functions become the nodes of these, and sparse initializers dense ones.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: not ONNX, truncated, an opset that is not supported, external data missing or outside,
            weights that onnxruntime has laid out for one processor.
        InvariantError: reading it would change its inputs or outputs; a defect of this tool.
    """
    path = Path(path)
    proto, embedded = read_proto(path)
    admit(_arrival(proto, embedded, path), USABLE, path)
    spell_domains(proto)
    _require_portable(proto, path)
    opset, called, came = opset_of(proto), bool(proto.functions), _interface(proto.graph)
    proto = without_functions(proto, path)
    filled = fill_sparse(proto, path)
    raised = raise_opset(proto)
    tidy_nodes(proto)
    model = from_proto(proto, path.parent, embedded)
    model.came_with, model.rewritten = opset, called or filled or raised
    _require_connected(model)
    _require_interface(model, came)
    confirm_declarations(model)
    settle_foreign_types(model)
    move_transposes(model)
    return model


def read_proto(path: Path, least: int = INLINE_BYTES) -> tuple[ModelProto, scan.Embedded]:
    """The model in a file as it lies there, without the bytes of initializers of `least` or more: see `scan.parse`.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: not ONNX, truncated, or a rule of `door.READABLE` is broken.
    """
    if not path.exists():
        hint = _ELSEWHERE.get(str(path).partition(":")[0], "check the path")
        raise UsageError("no such model file", where=str(path), hint=hint)
    if (found := no_file_at(path)) is not None:
        raise UsageError(f"the model path is {found}", where=str(path), hint="name the .onnx file in it")
    try:
        proto, embedded = scan.parse(path, least)
    except (DecodeError, UnicodeDecodeError):
        raise _not_onnx(path) from None
    if not proto.ir_version or not proto.opset_import or not proto.graph.node:
        raise _not_onnx(path)
    admit(_arrival(proto, embedded, path), READABLE, path)
    return proto, embedded


def _require_portable(proto: ModelProto, path: Path) -> None:
    blocked = [node for node in proto.graph.node if node.domain == _BLOCKED]
    if blocked:
        raise UnsupportedModelError(
            "onnxruntime has laid out the weights for one processor",
            where=str(path),
            expected="a model that is not optimised, or up to ORT_ENABLE_EXTENDED",
            found=f"{len(blocked)} nodes of the domain {_BLOCKED}, first {node_label(blocked[0])}",
            hint="start from the file that onnxruntime optimised",
        )


def _require_connected(model: Model) -> None:
    """Refuse a graph that reads tensors which nothing provides."""
    missing = sorted(set(unproduced(model)))
    if missing:
        raise UnsupportedModelError(
            f"the graph reads {len(missing)} tensor(s) that nothing produces",
            found=", ".join(missing[:5]),
            hint="export the model again; onnx.checker.check_model names the node",
        )


def _interface(graph: GraphProto) -> list[list[tuple[str, int]]]:
    """The names and element types of what a caller feeds, and of the outputs."""
    stored = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    fed = [value for value in graph.input if value.name not in stored]
    return [[(value.name, value.type.tensor_type.elem_type) for value in side] for side in (fed, graph.output)]


def _require_interface(model: Model, came: list[list[tuple[str, int]]]) -> None:
    """See that reading has left the inputs and outputs as they came."""
    if (found := _interface(model.frame)) != came:
        raise InvariantError(
            "reading the model changed its inputs or outputs",
            expected=str(came),
            found=str(found),
            hint="this is a defect; a model that was exported with opset 20 needs less rewriting",
        )


def _arrival(proto: ModelProto, embedded: scan.Embedded, path: Path) -> Arrival:
    return Arrival(proto, {name: len(data) for name, data in embedded.items()}, path.parent)


def _not_onnx(path: Path) -> UnsupportedModelError:
    return UnsupportedModelError(
        "not an ONNX model, or a truncated one",
        where=str(path),
        expected="a serialised onnx.ModelProto with a graph",
        found=f"{path.stat().st_size} bytes that do not parse as one",
        hint="export or copy the file again",
    )


def data_files(model: Model) -> list[Path]:
    """The external data files that a model just loaded reads from, sorted."""
    return sorted(model.data_files)


def file_digest(path: Path, data: Sequence[Path] = ()) -> str:
    """SHA-256 of the model file followed by its external data files, as hex: what `save` returned for them."""
    digest = hashlib.sha256()
    for part in (path, *data):
        with part.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def save(model: Model, path: Path | str, results: Staging | None = None) -> str:
    """Write `model` to `path`, atomically; with `PATH.data` beside it for external data.

    Args:
        results: write it there, as the last file that gets its name when the caller commits; None: write it now.

    Returns:
        The SHA-256 of the model file followed by the data file, as hex.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left.
    """
    path = Path(path)
    graph, large = model.export()
    total = graph.ByteSize() + sum(length for _, length, _ in large)
    digest = Digest()
    model.external = model.external or total > _PROTOBUF_LIMIT
    data, starts = data_beside(path), []
    if model.external:
        starts = _place(graph, data.name, large)
    with into(results) as staging:
        with staging.place(path, last=True).open("xb") as file:
            write_model(_Hashed(file, digest), model.header, graph, [] if model.external else large)
            begin_flush(file)
        if model.external:
            with staging.place(data).open("xb") as file:
                _write_data(_Hashed(file, digest), starts, large)
                begin_flush(file)
    return digest.hexdigest()


def data_beside(path: Path) -> Path:
    """Where the external data of a model that is written to `path` goes."""
    return path.with_name(path.name + ".data")


def write_tapped(
    model: Model,
    path: Path,
    outputs: Sequence[str],
    types: Mapping[str, np.dtype[Any]] | None = None,
    *,
    shared: Path | None = None,
) -> None:
    """Write a scratch copy with `outputs` as its only outputs, for running and throwing away: not atomic, not hashed.

    onnxruntime finds the types of inner tensors out; TensorRT wants them in the file (`types`, by name).
    Nodes that no output needs are left out.
    The weights lie in `PATH.data`: onnxruntime maps them from there, where it would copy them out of one file twice.
    With `shared`, they lie in the file that an earlier copy of the same model, `shared`, wrote beside itself.
    """
    graph, large = model.export()
    declared = {value.name: value for value in graph.output}
    wanted = [declared.get(name) or _inner_output(name, (types or {}).get(name)) for name in outputs]
    del graph.output[:]
    graph.output.extend(wanted)
    _keep_needed(graph)
    if shared is not None:
        _place(graph, data_beside(shared).name, large)
        with path.open("wb") as file:
            write_model(file, model.header, graph, [])
        return
    data = data_beside(path)
    starts = _place(graph, data.name, large)
    with path.open("wb") as file, data.open("wb") as data_file:
        write_model(file, model.header, graph, [])
        _write_data(data_file, starts, large)


def write_mapped(written: Path, path: Path) -> bool:
    """Write the model in the file `written` once more at `path`, in the same folder, its weights where they lie there.

    They are external data of the copy, in the middle of a model file: onnxruntime maps what it would copy twice.

    Returns:
        Whether it was written: not where nothing lies inside `written` that is worth it.
    """
    proto, embedded = scan.parse(written, _WORTH_MAPPING)
    for tensor in proto.graph.initializer:
        if (lying := embedded.get(tensor.name)) is not None:
            _refer(tensor, written.name, scan.offset_of(lying), len(lying))
    if embedded:
        path.write_bytes(proto.SerializeToString())
    return bool(embedded)


def _keep_needed(graph: GraphProto) -> None:
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(reads(node))
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _inner_output(name: str, kind: np.dtype[Any] | None) -> onnx.ValueInfoProto:
    if kind is None:
        return onnx.helper.make_empty_tensor_value_info(name)
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(kind), None)


def to_bytes(model: Model) -> bytes:
    """The model as one serialised file (below 2 GiB), as onnxruntime takes it from memory."""
    graph, large = model.export()
    buffer = BytesIO()
    write_model(buffer, model.header, graph, large)
    return buffer.getvalue()


class Digest:
    """SHA-256 in a thread, one piece after the writing: hashing and writing take about the same time."""

    def __init__(self) -> None:
        self._hash, self._pool = hashlib.sha256(), ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def update(self, data: Buffer) -> None:
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(self._hash.update, data)

    def hexdigest(self) -> str:
        self._pool.shutdown()
        return self._hash.hexdigest()


class _Hashed:
    """A writer that hashes what passes through, so that the file need not be read again."""

    def __init__(self, file: BinaryIO, digest: Digest) -> None:
        self.file, self.digest = file, digest

    def write(self, data: Buffer) -> None:
        self.digest.update(data)
        self.file.write(data)


def _place(graph: GraphProto, location: str, large: Sequence[Large]) -> list[int]:
    """List the large tensors in the graph as external ones; returns where each starts in the data file."""
    starts, offset = [], 0
    for tensor, length, _ in large:
        start = -(-offset // _ALIGNMENT) * _ALIGNMENT
        _refer(tensor, location, start, length)
        graph.initializer.append(tensor)
        starts.append(start)
        offset = start + length
    return starts


def _refer(tensor: TensorProto, location: str, start: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(start)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _write_data(file: BinaryWriter, starts: Sequence[int], large: Sequence[Large]) -> None:
    offset = 0
    for start, (_, length, values) in zip(starts, large, strict=True):
        file.write(b"\0" * (start - offset))
        file.write(values().data)
        offset = start + length
