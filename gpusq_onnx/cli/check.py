"""`gpusq-onnx check ORIGINAL COMPRESSED...`: how far apart two models are, with gates, and what a TensorRT parser says.

COMPRESSED may be a TensorRT engine, or an ONNX file that runs on TensorRT (`--on tensorrt`); what is asked for and not
there is exit code 5.

Shares (agreement, top-1, AP, mIoU) are 0 to 1, so that 95 for 95 % is refused; a drop is in
percentage points, so that 0.01 for one point is merely strict.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from gpusq_onnx.cli import several
from gpusq_onnx.cli.options import (
    HARNESS,
    IN_REPORT,
    STDOUT,
    HoldOutArgs,
    Json,
    Quiet,
    Report,
    Seed,
    TruthArgs,
    default_cache,
)
from gpusq_onnx.cli.spare import artefacts, claim
from gpusq_onnx.errors import UsageError

if TYPE_CHECKING:
    from gpusq_onnx.runtime.compare.gates import Gates
    from gpusq_onnx.workflows.check import CheckSettings, Parsing

_HOW = "How to compare, and whether TensorRT takes it"
_gate = partial(Option, rich_help_panel="Gates (exit code 1 when one is not met)")
_share = partial(_gate, metavar="0..1", min=0, max=1)
_drop = partial(_gate, metavar="POINTS")


@dataclass(frozen=True)
class GateArgs:
    """What must hold."""

    min_agreement: Annotated[float | None, _share("--min-agreement", help="Share of equal best classes.")] = None
    min_cosine: Annotated[float | None, _share("--min-cosine", help="Mean cosine, every output.")] = None
    max_top1_drop: Annotated[float | None, _drop("--max-top1-drop", help="Top-1 lost, in percentage points.")] = None
    min_top1: Annotated[float | None, _share("--min-top1", help="Top-1 of COMPRESSED.")] = None
    max_ap_drop: Annotated[float | None, _drop("--max-ap-drop", help="Box AP lost, in percentage points.")] = None
    min_ap: Annotated[float | None, _share("--min-ap", help="Box AP of COMPRESSED.")] = None
    max_mask_ap_drop: Annotated[float | None, _drop("--max-mask-ap-drop", help="Mask AP lost, percentage points.")] = (
        None
    )
    min_mask_ap: Annotated[float | None, _share("--min-mask-ap", help="Mask AP of COMPRESSED.")] = None
    max_miou_drop: Annotated[float | None, _drop("--max-miou-drop", help="Mean IoU lost, percentage points.")] = None
    min_miou: Annotated[float | None, _share("--min-miou", help="Mean IoU of COMPRESSED.")] = None

    def gates(self) -> "Gates":
        """As the library takes them."""
        from gpusq_onnx.runtime.compare.gates import Gates

        return Gates(**asdict(self))


class Where(str, Enum):
    """What runs COMPRESSED; the names are those of `on` of `workflows.check.CheckSettings`."""

    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


def _new_folder(path: Path | None) -> Path | None:
    if path is not None and path.exists() and not path.is_dir():
        raise UsageError("--artefacts names a file", where=str(path), expected="a folder, which need not exist yet")
    return path


@dataclass(frozen=True)
class LookArgs:
    """Where COMPRESSED runs and what is looked at."""

    on: Annotated[
        Where,
        Option("--on", rich_help_panel=_HOW, help="What runs COMPRESSED."),
    ] = Where.cpu
    taps: Annotated[
        list[str] | None,
        Option(
            "--taps",
            metavar="blocks|all|NAME",
            rich_help_panel=_HOW,
            help="Which inner tensor strays first. Repeatable.",
        ),
    ] = None
    tap_tolerance: Annotated[
        float,
        Option("--tap-tolerance", metavar="X", min=0, rich_help_panel=_HOW, help="Largest distance of a tap."),
    ] = 0.1
    artefacts: Annotated[
        Path | None,
        Option(
            "--artefacts",
            metavar="FOLDER",
            callback=_new_folder,
            rich_help_panel=_HOW,
            help="Save inputs and outputs there, for polygraphy run.",
        ),
    ] = None

    def look(self) -> "CheckSettings":
        """As the library takes them."""
        from gpusq_onnx.workflows.check import CheckSettings

        return CheckSettings(self.on.value, tuple(self.taps or ()), self.tap_tolerance, self.artefacts)


@dataclass(frozen=True)
class ParserArgs:
    """Whether to ask a TensorRT parser."""

    parser: Annotated[
        bool,
        Option("--parser", rich_help_panel=_HOW, help="A TensorRT parser must take it; needs no GPU."),
    ] = False
    build: Annotated[bool, Option("--build", rich_help_panel=_HOW, help="With --parser: build an engine too.")] = False
    shapes: Annotated[
        list[str] | None,
        Option(
            "--shapes",
            metavar="INPUT=SHAPE",
            rich_help_panel=_HOW,
            help="With --build: the shape, where any size goes.",
        ),
    ] = None
    cpu_harness: Annotated[Path | None, Option("--cpu-harness", metavar="DIR", rich_help_panel=_HOW, help=HARNESS)] = (
        None
    )
    trt_cache: Annotated[Path | None, Option("--trt-cache", hidden=True)] = None  # its name before

    def parsing(self) -> "Parsing | None":
        """As the library takes them; None: no parser is asked."""
        from gpusq_onnx.workflows.check import Parsing

        cache = self.cpu_harness or self.trt_cache or default_cache() / "trt_cpu"
        return Parsing(self.build, self.shapes or (), cache) if self.parser else None


def check(
    original: Annotated[Path, Argument(metavar="ORIGINAL", help="The model before.", show_default=False)],
    compressed: Annotated[
        list[Path],
        Argument(
            metavar="COMPRESSED...",
            help="Models after: ONNX or .plan.",
            show_default=False,
        ),
    ],
    data: HoldOutArgs,
    truth: TruthArgs,
    look: LookArgs,
    gates: GateArgs,
    parser: ParserArgs,
    seed: Seed = None,
    report: Report = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compare models on the same data, with gates, and ask a TensorRT parser."""
    from gpusq_onnx.cli.console import publish, show_sheet, warn
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.files import staged
    from gpusq_onnx.report.checking import sheet, summary
    from gpusq_onnx.workflows.check import check as check_models

    parsing = parser.parsing()
    options = data.options(seed, truth)

    def one(candidate: Path, alone: bool) -> str:
        claim([original, candidate], artefacts(look.artefacts), report, json)
        with staged() as results, open_progress(quiet=quiet) as progress:
            result = check_models(
                original,
                candidate,
                data=options,
                gates=gates.gates(),
                look=look.look(),
                parsing=parsing,
                progress=progress,
                results=results,
            )
            publish(result.to_dict(), result.digest(), report=report, json_target=json, results=results)
        for note in result.data["notes"]:
            warn(note)
        if not quiet and json != STDOUT and alone:
            show_sheet(sheet(result, options=True), IN_REPORT)
        result.require()
        return summary(result.comparison)

    files = several.matched(compressed)
    if look.artefacts and len(files) > 1:
        raise UsageError("--artefacts is about one model", found=f"{len(files)} models", hint="give them one at a time")
    several.for_each(files, one, quiet=quiet, report=report, json=json)
