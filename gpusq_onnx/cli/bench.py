"""`gpusq-onnx bench MODEL...`: latency and throughput of several models, side by side with their dense baselines."""

from enum import Enum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from gpusq_onnx.cli.options import IN_REPORT, STDOUT, Json, Quiet, Report, default_cache, writable
from gpusq_onnx.cli.spare import claim
from gpusq_onnx.errors import UsageError
from gpusq_onnx.marks import in_picture


class Runtime(str, Enum):
    """What runs the models."""

    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"
    onnxruntime_cuda = "onnxruntime-cuda"
    torch = "torch"
    torch_cpu = "torch-cpu"


def bench(
    models: Annotated[list[Path], Argument(metavar="MODEL...", help="The models to compare.", show_default=False)],
    backend: Annotated[
        Runtime,
        Option(
            "--backend",
            metavar="NAME",
            help="tensorrt, torch (a GPU without TensorRT), onnxruntime-cuda; on CPUs onnxruntime, torch-cpu (exact).",
        ),
    ] = Runtime.tensorrt,
    batch: Annotated[
        str, Option("--batch", metavar="N,N,…", help="Batch sizes; 1 gives a latency, others a throughput.")
    ] = "1,32,256",
    crop: Annotated[
        int | None, Option("--crop", metavar="PX", help="Side of the images, for models that take any size.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        Option("--shapes", metavar="INPUT=SHAPE", help="The same for any input, every axis: x=1x3x224x224."),
    ] = None,
    rounds: Annotated[int, Option("--rounds", metavar="N", min=3, help="Interleaved rounds; medians are shown.")] = 20,
    cache: Annotated[
        Path | None,
        Option("--cache", metavar="DIR", help="Where engines and searched kernels are kept; default: in ~/.cache."),
    ] = None,
    chart: Annotated[
        Path | None,
        Option("--chart", metavar="FILE.png", callback=writable, help="Draw a bar chart; needs the extra `report`."),
    ] = None,
    report: Report = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Time models side by side, beside dense FP32, TF32, FP16 and INT8 of the same runtime; in the paper's format."""
    from gpusq_onnx.cli.console import publish, show_sheet, warn
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.files import staged
    from gpusq_onnx.report.benchmark import digest, draw, require_chart, sheet
    from gpusq_onnx.workflows.bench import bench as time_models

    claim(models, {chart: in_picture} if chart else {}, report, json)
    batches = _batches(batch)
    if chart:
        require_chart(chart)
    with open_progress(quiet=quiet) as progress:
        found = time_models(
            models,
            backend=backend.value,
            batches=batches,
            rounds=rounds,
            crop=crop,
            shapes=shapes or (),
            cache=cache or default_cache(),
            progress=progress,
        )
    for note in found.notes:
        warn(note)
    with staged() as results:
        publish(found.to_dict(), digest(found), report=report, json_target=json, results=results)
        if chart:
            draw(found, chart, results)
    if not quiet and json != STDOUT:
        show_sheet(sheet(found), IN_REPORT)


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError("--batch cannot be read", expected="positive numbers, comma-separated: 1,32,256", found=text)
    return [int(part) for part in parts]
