"""`gpusq-onnx pack MODEL...` and `unpack FILE`: sparse weights at the size that they need, for storage and transfer."""

from collections import Counter
from pathlib import Path
from shlex import join
from typing import Annotated

from typer import Argument, Option

from gpusq_onnx.cli import several
from gpusq_onnx.cli.journal import settings
from gpusq_onnx.cli.options import STDOUT, Json, Models, Quiet, require_file, writable
from gpusq_onnx.cli.spare import a_container, a_model, claim
from gpusq_onnx.marks import AUTHOR


def pack(
    models: Models,
    output: Annotated[
        str | None, Option("--output", "-o", metavar="FILE|DIR/", help="Default: MODEL.gpusq beside MODEL.")
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Store a pruned model in the space that its pattern needs; `unpack` restores it bit for bit."""
    from gpusq_onnx.workflows.pack import SUFFIX

    require_file(output, "a container")
    files = several.matched(models)
    places = several.targets(files, output, lambda model: model.with_suffix(SUFFIX))
    several.for_each(
        files,
        lambda model, alone: _packed(model, places[model], json, quiet=quiet, alone=alone),
        quiet=quiet,
        json=json,
    )


def _packed(model: Path, target: Path, json: Path | None, *, quiet: bool, alone: bool) -> str:
    from gpusq_onnx.cli.console import show, show_columns, write_json
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.files import staged
    from gpusq_onnx.workflows.pack import pack as pack_model

    claim([model], {target: a_container}, json=json)
    with staged() as results, open_progress(quiet=quiet) as progress:
        contents = pack_model(model, target, progress=progress, results=results)
        before, after = sum(file.bytes for file in contents.files), results.place(target).stat().st_size
        if json:
            document = {
                "tool": AUTHOR,
                "model": str(model),
                "packed": str(target),
                "bytes": after,
                **contents.to_dict(),
            }
            write_json(document, json, results)
    said = f"{target}: {after:,} bytes, {after / before:.1%} of {before:,}"
    if quiet or json == STDOUT or not alone:
        return said
    groups = Counter((weight.pattern, weight.width, weight.bits) for weight in contents.weights)
    rows = [[str(count), pattern, f"{width}", f"{bits:g}"] for (pattern, width, bits), count in groups.items()]
    show(f"{model} -> {said}\n")
    show_columns(["weights", "pattern", "bits a value", "bits a weight"], rows)
    weights, scales = contents.sizes
    rest = after - weights - scales
    show(f"\nweights {weights:,} bytes, their scales {scales:,}, all else, compressed, {rest:,}")
    if all(weight.width == 32 for weight in contents.weights):
        show("32-bit values stay 32 bits wide: qdq-int8 gives them 8-bit codes, 5 bits a weight at 2:4")
    show(f"next:\n  gpusq-onnx {join(['unpack', str(target)])}")
    return said


def unpack(
    packed: Annotated[Path, Argument(metavar="FILE", help="What pack wrote.", show_default=False)],
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="FILE", callback=writable, help="Default: the model's own name, beside FILE."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Restore the model that was packed: the same bytes, or an error and nothing written."""
    from gpusq_onnx.cli.console import show
    from gpusq_onnx.graph.io import file_digest
    from gpusq_onnx.graph.pack.archive import read_contents
    from gpusq_onnx.workflows.pack import unpack as unpack_model

    if output is not None:
        claim(
            [packed], {output: lambda path: a_model(path) or file_digest(path) == read_contents(packed).files[0].sha256}
        )
    target = unpack_model(packed, output, force=settings().force)
    if not quiet:
        model = read_contents(packed).files[0]
        show(f"{packed} -> {target}: {model.bytes:,} bytes\nsha256 {model.sha256}")
