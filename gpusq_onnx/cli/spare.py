"""What a result may replace: a file that this tool wrote, or an empty one; all else is spared, but for `--force`.

    report, digest, page, picture, recipe, log    have the mark of `gpusq_onnx.marks`
    model                                         has `pkg.gpusq_onnx.*` in its metadata
    model's external data                         has such a model beside it
    Polygraphy's files of a check                 name our runners
    packed file                                   has our table of contents
    engine                                        has our card beside it, with the engine's SHA-256
    engine's card                                 has a card's keys

A file of the kind counts, whichever verb wrote it. A command's own inputs are no matter of this: they are refused by
name, and `--force` is no help there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpusq_onnx import marks
from gpusq_onnx.cli.journal import settings
from gpusq_onnx.cli.options import STDOUT, digest_of
from gpusq_onnx.errors import GpusqError, UsageError
from gpusq_onnx.files import require_apart
from gpusq_onnx.parsing import parse_json, read_bytes

Known = Callable[[Path], bool]
"""Whether a file is one of ours, of a kind. May raise OSError or GpusqError where it is none at all."""


def claim(
    inputs: Sequence[Path],
    results: Mapping[Path, Known],
    report: Path | None = None,
    json: Path | None = None,
) -> None:
    """Make sure, before the work, that what a command is going to write replaces nothing that it should not.

    Args:
        inputs: the files that are read.
        results: the files that are written beside `report`, its digest and `json`, each with what knows its kind.

    Raises:
        UsageError: a report over another file of the command, or, without `--force`, a result over somebody's file.
    """
    _keep_apart(inputs, list(results), report, json)
    if settings().force:
        return
    places = {**results}
    if report is not None:
        places |= {report: marks.in_json, digest_of(report): marks.in_digest}
    if json is not None and json != STDOUT:
        places[json] = marks.in_json
    for path, known in places.items():
        if path.is_file() and path.stat().st_size and not _read(path, inputs) and not _ours(path, known):
            raise UsageError(
                "the file exists, and gpusq-onnx did not write it",
                where=str(path),
                hint="name another file, or give --force",
            )


def a_model(path: Path) -> bool:
    """Whether `apply` wrote it."""
    from gpusq_onnx.graph.io import read_proto

    try:
        return any(entry.key.startswith(marks.METADATA) for entry in read_proto(path)[0].metadata_props)
    except GpusqError:  # no model
        return False


def artefacts(folder: Path | None) -> dict[Path, Known]:
    """The files of `check --artefacts FOLDER`, with what knows them."""
    from gpusq_onnx.runtime.compare.artefacts import COMPRESSED, INPUTS, OUTPUTS, wrote

    return {} if folder is None else {folder / name: wrote for name in (INPUTS, OUTPUTS, COMPRESSED)}


def a_container(path: Path) -> bool:
    """Whether `pack` wrote it."""
    from gpusq_onnx.graph.pack.archive import read_contents

    return bool(read_contents(path).files)


def an_engine(path: Path) -> bool:
    """Whether `build` wrote it, and nobody replaced it."""
    from gpusq_onnx.graph.io import file_digest
    from gpusq_onnx.runtime.tensorrt.engine import card_of

    card = _card(card_of(path))
    return card is not None and card["sha256"] == file_digest(path)


def an_engine_card(path: Path) -> bool:
    """Whether `build` wrote it beside an engine."""
    return _card(path) is not None


def _keep_apart(inputs: Sequence[Path], results: Sequence[Path], report: Path | None, json: Path | None) -> None:
    """Refuse a report that would overwrite another file of the command, or its own digest."""
    taken = [*((path, "the model") for path in inputs), *((path, "the result") for path in results)]
    digest = None if report is None else digest_of(report)
    for option, path in (("--report", report), ("the digest of --report", digest), ("--json", json)):
        if path is None or path == STDOUT:
            continue
        for other, called in taken:
            require_apart(path, [other], f"{option} would overwrite {called}", "name another file, FILE.json")
        taken.append((path, option))


def _card(path: Path) -> dict[str, object] | None:
    try:
        document = parse_json(read_bytes(path))
    except ValueError:
        return None
    return document if isinstance(document, dict) and {"sha256", "bytes", "deployable"} <= set(document) else None


def _read(path: Path, inputs: Sequence[Path]) -> bool:
    """Whether it is one of the inputs, under whatever name."""
    return any(file.exists() and path.samefile(file) for file in inputs)


def _ours(path: Path, known: Known) -> bool:
    try:
        return known(path)
    except (OSError, GpusqError):  # not of the kind, or not to be read
        return False
