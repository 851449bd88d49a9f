"""`gpusq-onnx build MODEL`: a TensorRT engine, what became of each weight in it, and a gate on its sparse kernels."""

from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from gpusq_onnx.cli.options import HARNESS, IN_REPORT, STDOUT, Json, ModelPath, Quiet, Report, writable
from gpusq_onnx.cli.spare import an_engine, an_engine_card, claim
from gpusq_onnx.errors import GateFailed
from gpusq_onnx.marks import in_first_line

if TYPE_CHECKING:
    from gpusq_onnx.workflows.build import EngineOptions

_engine = partial(Option, rich_help_panel="Engine", show_default=False)
_where = partial(Option, rich_help_panel="Where it is built", show_default=False)


class OtherGpus(str, Enum):
    """Other GPUs that may load the engine."""

    none = "none"
    ampere_plus = "ampere_plus"
    same_compute_capability = "same_compute_capability"


@dataclass(frozen=True)
class EngineArgs:
    """What the engine is to be."""

    batch: Annotated[
        list[str] | None,
        _engine("--batch", metavar="MIN,OPT,MAX", help="Batches it takes, tuned for OPT; or N. Repeat: more profiles."),
    ] = None
    shapes: Annotated[
        list[str] | None,
        _engine(
            "--shapes", metavar="INPUT:MIN,OPT,MAX", help="All axes of one input, e.g. x:1x3x224x224,32x3x224x224."
        ),
    ] = None
    crop: Annotated[int | None, _engine("--crop", metavar="PX", help="Side of the images, where any size goes.")] = None
    optimization_level: Annotated[
        int,
        Option(
            "--optimization-level",
            metavar="0..5",
            min=0,
            max=5,
            rich_help_panel="Engine",
            help="Search longer for faster kernels.",
        ),
    ] = 3
    memory: Annotated[
        str | None, _engine("--memory", metavar="POOL:SIZE", help="Limit the builder: workspace:4G, comma-separated.")
    ] = None
    hardware: Annotated[
        OtherGpus,
        Option("--hardware-compatible", rich_help_panel="Engine", help="Let other GPUs load it, at a price."),
    ] = OtherGpus.none
    version_compatible: Annotated[
        bool, _engine("--version-compatible", help="Let later TensorRT versions load it.")
    ] = False
    no_tf32: Annotated[bool, _engine("--no-tf32", help="FP32 layers compute in full FP32.")] = False

    def options(self, *, rtx: bool) -> "EngineOptions":
        """As the library takes them. Raises UsageError for a memory limit that cannot be read."""
        from gpusq_onnx.runtime.tensorrt.options import parse_memory
        from gpusq_onnx.workflows.build import EngineOptions

        return EngineOptions(
            batches=self.batch or (),
            shapes=self.shapes or (),
            crop=self.crop,
            tf32=not self.no_tf32,
            optimization_level=self.optimization_level,
            memory=parse_memory(self.memory) if self.memory else {},
            hardware=self.hardware.value,
            version_compatible=self.version_compatible,
            rtx=rtx,
        )


@dataclass(frozen=True)
class PlaceArgs:
    """Which TensorRT builds, and what is kept."""

    rtx: Annotated[bool, _where("--rtx", help="TensorRT-RTX instead of TensorRT.")] = False
    cpu_harness: Annotated[Path | None, _where("--cpu-harness", metavar="DIR", help=HARNESS)] = None
    cache: Annotated[
        Path | None, _where("--cache", metavar="DIR", help="Keep engines and kernel timings there, and reuse them.")
    ] = None


def build(
    model: ModelPath,
    engine: EngineArgs,
    place: PlaceArgs,
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            metavar="FILE",
            callback=writable,
            help="The engine, and its card FILE.json; default: MODEL.plan beside MODEL.",
        ),
    ] = None,
    min_sparse_chosen: Annotated[
        str | None,
        Option("--min-sparse-chosen", metavar="N|P%", help="Gate (exit code 1): layers that must run sparse kernels."),
    ] = None,
    log: Annotated[
        Path | None, Option("--log", metavar="FILE", callback=writable, help="Write the builder's log there.")
    ] = None,
    report: Report = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Build a TensorRT engine and show, weight by weight, what TensorRT made of it; with a gate on sparse kernels."""
    from gpusq_onnx.cli.console import publish, show_sheet, warn
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.files import staged
    from gpusq_onnx.report.engine_digest import digest, sheet
    from gpusq_onnx.runtime.tensorrt.engine import card_of
    from gpusq_onnx.workflows.build import build as build_model

    plan = output or model.with_suffix(".plan")
    results_of = {plan: an_engine, card_of(plan): an_engine_card, **({log: in_first_line} if log else {})}
    claim([model], results_of, report, json)
    with staged() as results, open_progress(quiet=quiet) as progress:
        found = build_model(
            model,
            plan,
            engine.options(rtx=place.rtx),
            cpu_harness=place.cpu_harness,
            cache=place.cache,
            min_sparse_chosen=min_sparse_chosen,
            log=log,
            progress=progress,
            warn=warn,
            results=results,
        )
        publish(found.to_dict(), digest(found), report=report, json_target=json, results=results)
    if not quiet and json != STDOUT:
        show_sheet(sheet(found), IN_REPORT)
    if found.failures:
        raise GateFailed("the engine runs too few sparse kernels", where=str(plan), found="; ".join(found.failures))
