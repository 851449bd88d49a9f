"""The options that verbs share, as groups for `groups.grouped`, and what they mean to the library.

A value that the caller did not give is None and is not passed on: defaults belong to the library (and to
`--data-options`), never to the command line.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, CallbackParam, Option

from gpusq_onnx.cli.help import complete_pipeline
from gpusq_onnx.data.presets import PRESETS
from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import no_file_at, require_place

if TYPE_CHECKING:
    from gpusq_onnx.data.options import DataOptions
    from gpusq_onnx.pipeline.grammar import Pipeline

STDOUT = Path("-")
HARNESS = "GPU-less parser and builder, set up once and run."
IN_REPORT = "--report FILE.json"  # what shows all of a result that a screen cuts
_what = partial(Option, rich_help_panel="What to do", show_default=False)
_data = partial(Option, rich_help_panel="Data", show_default=False)


def writable(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written as one, before the work starts."""
    if path is None or path == STDOUT:
        return path
    require_place(path, repr(path.name))
    if (found := no_file_at(path)) is not None:
        raise UsageError("the file to write is none", where=str(path), found=found, hint="name a file")
    return path


def require_file(output: str | None, what: str) -> None:
    """Refuse stdout as the place of what is a file; an option whose type is a path refuses it by itself."""
    if output == str(STDOUT):
        raise UsageError(f"{what} does not go to stdout", where="-o -", hint="name a file")


def numbers(param: CallbackParam, text: str | None) -> str | None:
    """The text, which is one number or several; their range is the library's to judge."""
    try:
        [float(part) for part in (text or "0").split(",")]
    except ValueError:
        what, hint = f"{param.opts[0]} cannot be read", "separate them by commas, without blanks"
        raise UsageError(what, expected="1 or 3 numbers, such as 0.485,0.456,0.406", found=text, hint=hint) from None
    return text


def digest_of(report: Path) -> Path:
    """Where the same in words lies: `FILE.md` beside `FILE.json`."""
    return report.with_suffix(".md")


def default_cache() -> Path:
    """Where what is made once is kept: in $XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpusq-onnx"


ModelPath = Annotated[Path, Argument(metavar="MODEL", help="The ONNX model.", show_default=False)]
Models = Annotated[list[Path], Argument(metavar="MODEL...", help="ONNX models, or a pattern.", show_default=False)]
Full = Annotated[bool, Option("--full", help="Everything, a line each, not only a screen of it.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress, no summary: errors and warnings only.")]
Json = Annotated[
    Path | None,
    Option(
        "--json",
        metavar="FILE",
        allow_dash=True,
        callback=writable,
        help="The result as JSON; -: to stdout, alone there.",
    ),
]
Report = Annotated[
    Path | None,
    Option(
        "--report",
        metavar="FILE.json",
        callback=writable,
        help="Write the report, and FILE.md, the same in words.",
    ),
]
Output = Annotated[
    str | None,
    Option(
        "--output",
        "-o",
        metavar="FILE|DIR/",
        help="The new model. Default: MODEL.gpusq.onnx; -: to stdout, alone there.",
    ),
]
Seed = Annotated[
    int | None,
    Option("--seed", metavar="N", min=0, help="Seed of sampling and of synthetic images."),
]


@dataclass(frozen=True)
class PipelineArgs:
    """What to do to the model."""

    passes: Annotated[
        list[str] | None,
        _what(
            "--passes",
            "-p",
            metavar="TEXT",
            autocompletion=complete_pipeline,
            help="Passes in order, 'prune24{method=sparsegpt},qdq-int8', or a preset.",
        ),
    ] = None
    recipe: Annotated[
        Path | None, _what("--recipe", metavar="FILE", help="The same as TOML: [[pass]] tables, each with a name.")
    ] = None
    overrides: Annotated[
        list[str] | None,
        _what("--set", metavar="PASS.KEY=VALUE", help="Set an option of a pass; repeatable; no quotes."),
    ] = None
    target: Annotated[
        str | None,
        _what("--target", metavar="NAME", help="Fit the passes to ampere, ada, hopper, blackwell, orin, rtx or cpu."),
    ] = None
    allow_noop: Annotated[bool, _what("--allow-noop", help="Exit 0 when no pass changes anything.")] = False
    no_canonical: Annotated[bool, _what("--no-canonical", help="Leave Einsum, branches, computed weights alone.")] = (
        False
    )
    finetune: Annotated[
        int | None, _what("--finetune", metavar="EPOCHS", min=1, help="Distil after pruning, learn scales after INT8.")
    ] = None
    finetune_steps: Annotated[
        int | None, _what("--finetune-steps", metavar="STEPS", min=1, help="The same, counted in steps.")
    ] = None

    def pipeline(self) -> "Pipeline":
        """The pipeline as it will run: presets replaced, learning passes inserted, `--set` applied.

        Raises:
            UsageError: neither or both of --passes and --recipe, text that cannot be read, unknown names or options,
                values out of range, both of --finetune and --finetune-steps, or nothing that they could follow.
        """
        from gpusq_onnx.pipeline import grammar
        from gpusq_onnx.workflows.pipelines import as_pipeline

        texts = self.passes or []
        if len(texts) > 1:
            raise grammar.shell_damage(texts) or UsageError(
                "--passes is given more than once", found=", ".join(map(repr, texts)), hint="write --passes 'A,B'"
            )
        if bool(texts) == (self.recipe is not None):
            raise UsageError(
                "one of --passes and --recipe says what to do",
                found="both" if texts else "neither",
                hint="e.g. --passes 'prune24,qdq-int8'; see gpusq-onnx passes list",
            )
        return as_pipeline(
            self.recipe or texts[0],
            finetune=self.finetune,
            finetune_steps=self.finetune_steps,
            overrides=self.overrides or (),
        )


@dataclass(frozen=True)
class TruthArgs:
    """What the images show, beside `--classes`, for the verbs that score."""

    annotations: Annotated[
        Path | None, _data("--annotations", metavar="FILE.json", help="COCO boxes of the folder's images: gives AP.")
    ] = None
    masks: Annotated[
        Path | None, _data("--masks", metavar="FOLDER", help="Label maps, NAME.png for NAME.jpg: gives mean IoU.")
    ] = None
    reduce_zero_label: Annotated[bool, _data("--reduce-zero-label", help="In label maps 0 is no class (ADE20K).")] = (
        False
    )


@dataclass(frozen=True)
class DataArgs:
    """Where images come from and how they become inputs; the names are those of `data.options.DataOptions`."""

    data: Annotated[
        Path | None,
        _data(
            "--data",
            metavar="PATH",
            help="Folder, .parquet, .tar, .npy, .npz or FILE.py.",
        ),
    ] = None
    samples: Annotated[
        int | None,
        _data(
            "--samples",
            metavar="N",
            help="How many images. Default: 16.",
        ),
    ] = None
    preset: Annotated[
        str | None,
        _data("--data-preset", metavar="NAME", help=f"Preprocessing by name: {', '.join(PRESETS)}."),
    ] = None
    resize: Annotated[
        int | None,
        _data("--resize", metavar="PX", help="Shorter side, never enlarged. Default: crop/0.875."),
    ] = None
    crop_ratio: Annotated[
        float | None, _data("--crop-ratio", metavar="X", help="Crop / resize, where no resize is given.")
    ] = None
    crop: Annotated[
        int | None, _data("--crop", metavar="PX", help="Side of the centre crop. Default: the model's.")
    ] = None
    fit: Annotated[
        str | None, _data("--fit", metavar="crop|stretch", help="stretch: the whole image. Default: crop.")
    ] = None
    mean: Annotated[
        str | None,
        _data("--mean", metavar="R,G,B", callback=numbers, help="Mean of pixels in 0..1. Default: ImageNet's."),
    ] = None
    std: Annotated[
        str | None,
        _data("--std", metavar="R,G,B", callback=numbers, help="Standard deviation of pixels. Default: ImageNet's."),
    ] = None
    classes: Annotated[
        Path | None, _data("--classes", metavar="FILE", help="Line i is the folder of class i; none: no labels.")
    ] = None
    layout: Annotated[str | None, _data("--layout", metavar="NCHW|NHWC", help="Order of the axes.")] = None
    channels: Annotated[
        str | None, _data("--channels", metavar="RGB|BGR", help="Order of the channels. Default: RGB.")
    ] = None
    interpolation: Annotated[
        str | None, _data("--interpolation", metavar="NAME", help="Resizing method: bicubic (default), bilinear, …")
    ] = None
    max_pixels: Annotated[
        int | None, _data("--max-pixels", metavar="N", help="An image with more pixels counts as corrupt.")
    ] = None
    data_options: Annotated[
        Path | None,
        _data("--data-options", metavar="FILE.toml", help="The same keys as TOML; what is given here wins."),
    ] = None

    def options(self, seed: int | None, truth: TruthArgs = TruthArgs()) -> "DataOptions":
        """What was given, over the file's keys. Raises UsageError for a key or a value that there is not."""
        from gpusq_onnx.data.options import DataOptions

        given: dict[str, Any] = {
            "path": self.data,
            "samples": self.samples,
            **self._more(),
            "preset": self.preset,
            "resize": self.resize,
            "crop_ratio": self.crop_ratio,
            "crop": self.crop,
            "fit": self.fit,
            "mean": self.mean,
            "std": self.std,
            "classes": self.classes,
            "annotations": truth.annotations,
            "masks": truth.masks,
            "reduce_zero_label": truth.reduce_zero_label or None,
            "layout": self.layout,
            "channels": self.channels,
            "interpolation": self.interpolation,
            "max_pixels": self.max_pixels,
            "seed": seed,
        }
        given = {key: value for key, value in given.items() if value is not None}
        if self.data_options is not None:
            return DataOptions.from_toml(self.data_options, given)
        return DataOptions.from_values(given, where="command line")

    def _more(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class HoldOutArgs(DataArgs):
    """The same for the verbs that leave samples out, and for the one that compares on them."""

    samples: Annotated[
        int | None, _data("--samples", metavar="N", help="Default: 128, synthetic 64; to score, all.")
    ] = None
    hold_out: Annotated[
        int | None,
        _data("--hold-out", metavar="N", help="N samples no pass sees; check compares on them."),
    ] = None

    def _more(self) -> dict[str, Any]:
        return {"hold_out": self.hold_out}


@dataclass(frozen=True)
class CalibrationArgs(HoldOutArgs):
    """The same for the verbs that prune, calibrate or train."""

    samples: Annotated[
        int | None, _data("--samples", metavar="N", help="Default: 128, synthetic 64; to train or score, all.")
    ] = None
    calibrate: Annotated[
        int | None,
        _data("--calibrate", metavar="N", help="N samples calibrate, all train. Default: 128."),
    ] = None

    def _more(self) -> dict[str, Any]:
        return {**super()._more(), "calibrate": self.calibrate}
