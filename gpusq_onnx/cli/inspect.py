"""`gpusq-onnx inspect MODEL...`: each weight, the kernel that TensorRT can choose for it, and what is in the way."""

from pathlib import Path

from gpusq_onnx.cli import several
from gpusq_onnx.cli.options import STDOUT, Full, Json, Models, Quiet
from gpusq_onnx.cli.spare import claim
from gpusq_onnx.marks import AUTHOR


def inspect(models: Models, json: Json = None, full: Full = False, quiet: Quiet = False) -> None:
    """Show each weight: its pattern, Q/DQ, type, the kernel TensorRT can choose, and what is in its way."""
    several.for_each(
        several.matched(models),
        lambda model, alone: _inspected(model, json, full=full, quiet=quiet, alone=alone),
        quiet=quiet,
        json=json,
    )


def _inspected(model: Path, json: Path | None, *, full: bool, quiet: bool, alone: bool) -> str:
    from gpusq_onnx.cli.console import show, show_table, show_verdict, width, write_json
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.report import outline
    from gpusq_onnx.workflows.inspect import inspect as inspect_model

    claim([model], {}, json=json)
    with open_progress(quiet=quiet) as progress:
        found = inspect_model(model, progress=progress)
    if json:
        write_json({"tool": AUTHOR, "model": str(model), **found.to_dict()}, json)
    kernels = ", ".join(f"{number} {kernel}" for kernel, number in found.kernels.items())
    if quiet or json == STDOUT or not (alone or full):
        return kernels
    if not full:
        show_verdict(outline.of_inspection(str(model), found, width()))
        return kernels
    rows = [
        [
            weight.name,
            weight.module or "-",
            weight.role,
            weight.op,
            f"[{weight.shape[0]}, {weight.shape[1]}]",
            weight.dtype if weight.codes in ("", weight.dtype) else f"{weight.dtype} as {weight.codes}",
            weight.patterns[0] if weight.patterns else "dense",
            " ".join(weight.quantised) or "-",
            str(weight.kernel),
            "; ".join(obstacle.text for obstacle in weight.obstacles) or "-",
        ]
        for weight in found.weights
    ]
    columns = ["tensor", "module", "role", "op", "[out, k]", "type", "pattern", "Q/DQ on", "kernel", "in its way"]
    show_table(columns, rows)
    fit = sum(weight.eligible for weight in found.weights)
    show(f"\n{len(found.weights)} weights, opset {found.opset}: {kernels}; {fit} fit for sparse kernels")
    for other in found.others:
        show(f"{other.name}, read by {other.reader}: no weight matrix: {other.reason}")
    for line in found.advice:
        show(line)
    for key, value in sorted(found.metadata.items()):
        show(f"{key} = {value}")
    return kernels
