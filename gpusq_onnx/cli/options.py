"""The options that verbs share, as groups for `groups.grouped`, and what they mean to the library.

A value that the caller did not give is None and is not passed on: defaults belong to the library (and to
`--data-options`), never to the command line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from gpusq_onnx.cli.help import complete_pipeline
from gpusq_onnx.errors import UsageError

if TYPE_CHECKING:
    from gpusq_onnx.data.options import DataOptions
    from gpusq_onnx.graph.model import TensorSpec
    from gpusq_onnx.pipeline.grammar import Pipeline

STDOUT = Path("-")
_what = partial(Option, rich_help_panel="What to do", show_default=False)
_data = partial(Option, rich_help_panel="Data", show_default=False)


def writable(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written as one, before the work starts."""
    if path is None or path == STDOUT:
        return path
    if not path.parent.is_dir():
        raise UsageError(f"the folder of {path.name!r} does not exist", where=str(path.parent), hint="create it")
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "a device or a pipe"
        raise UsageError("the file to write is none", where=str(path), found=found, hint="name a file")
    return path


def keep_apart(models: Sequence[Path], report: Path | None, json: Path | None = None) -> None:
    """Refuse a report that would overwrite a model, another report or its own digest."""
    taken = {path.resolve(): "the model" for path in models}
    digest = report.with_suffix(".md") if report else None
    for option, path in (("--report", report), ("the digest of --report", digest), ("--json", json)):
        if path is None or path == STDOUT:
            continue
        if path.resolve() in taken:
            what = f"{option} would overwrite {taken[path.resolve()]}"
            raise UsageError(what, where=str(path), hint="name another file, FILE.json")
        taken[path.resolve()] = option


ModelPath = Annotated[Path, Argument(metavar="MODEL", help="The ONNX model.", show_default=False)]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress and no summary: errors and warnings only.")]
Json = Annotated[
    Path | None,
    Option(
        "--json",
        metavar="FILE",
        callback=writable,
        help="The result as JSON into FILE; with -, to stdout and nothing else there.",
    ),
]
Report = Annotated[
    Path | None,
    Option(
        "--report",
        metavar="FILE.json",
        callback=writable,
        help="Write the report, and its digest beside it as FILE.md.",
    ),
]
Output = Annotated[
    Path | None,
    Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=writable,
        help="The new model; default: MODEL.gpusq.onnx beside MODEL.",
    ),
]
Seed = Annotated[
    int | None,
    Option("--seed", metavar="N", min=0, help="Of all that is random: the choice of samples, synthetic images."),
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
            help="Passes in order, e.g. 'prune24{method=sparsegpt},qdq-int8', or a preset. Quote it.",
        ),
    ] = None
    recipe: Annotated[
        Path | None, _what("--recipe", metavar="FILE", help="The same as TOML: [[pass]] tables, each with a name.")
    ] = None
    overrides: Annotated[
        list[str] | None,
        _what("--set", metavar="PASS.KEY=VALUE", help="Set one option of a pass; needs no quotes; repeatable."),
    ] = None
    target: Annotated[
        str | None,
        _what("--target", metavar="NAME", help="Fit the passes to ampere, ada, hopper, blackwell, orin, rtx or cpu."),
    ] = None
    allow_noop: Annotated[bool, _what("--allow-noop", help="That no pass changes anything is no error.")] = False
    no_canonical: Annotated[
        bool, _what("--no-canonical", help="Do not rewrite Einsum, branches and computed weights first.")
    ] = False
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
        from gpusq_onnx.pipeline import finetune, grammar, recipe, table

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
        written = recipe.load(self.recipe) if self.recipe else grammar.parse(texts[0])
        pipeline = table.expand(written)
        if self.finetune is not None and self.finetune_steps is not None:
            raise UsageError("--finetune and --finetune-steps both say how long to train", hint="give one of them")
        if self.finetune is not None:
            pipeline = finetune.insert(pipeline, "epochs", self.finetune)
        if self.finetune_steps is not None:
            pipeline = finetune.insert(pipeline, "steps", self.finetune_steps)
        pipeline = grammar.apply_overrides(pipeline, self.overrides or [])
        table.resolve(pipeline)  # unknown options and values out of range are reported before a model is read
        return pipeline


def open_sizes(
    inputs: "Sequence[TensorSpec]", shapes: Sequence[str] | None, options: "DataOptions"
) -> dict[str, tuple[int, ...]]:
    """Shapes for inputs that leave more than the batch open: --shapes, else what the images' options say.

    Raises:
        UsageError: a shape that cannot be read or does not fit; neither shapes nor a crop.
    """
    from gpusq_onnx.data.sizes import sizes_for
    from gpusq_onnx.graph.pin import is_open, pin_specs
    from gpusq_onnx.runtime.builder.profiles import parse_shapes

    given = {name: bounds.opt for name, bounds in map(parse_shapes, shapes or [])}
    if is_open(pin_specs(inputs, given)):
        given |= {name: size for name, size in sizes_for(inputs, options).items() if name not in given}
    return given


@dataclass(frozen=True)
class DataArgs:
    """Where images come from and how they become inputs; the names are those of `data.options.DataOptions`."""

    data: Annotated[
        Path | None,
        _data(
            "--data",
            metavar="PATH",
            help="Folder of images, .parquet, .tar, .npy, .npz, or script FILE.py[:FUNC], which is run.",
        ),
    ] = None
    samples: Annotated[
        int | None, _data("--samples", metavar="N", help="Use N of them, spread evenly over the classes.")
    ] = None
    calibrate: Annotated[
        int | None, _data("--calibrate", metavar="N", help="Of these, prune and calibrate with N; train with all.")
    ] = None
    resize: Annotated[
        int | None, _data("--resize", metavar="PX", help="Shorter side; an image that is smaller is only cropped.")
    ] = None
    crop: Annotated[int | None, _data("--crop", metavar="PX", help="Side of the centre crop.")] = None
    fit: Annotated[
        str | None, _data("--fit", metavar="crop|stretch", help="stretch: the whole image, as many detectors want it.")
    ] = None
    mean: Annotated[str | None, _data("--mean", metavar="R,G,B", help="Mean of pixels in 0..1.")] = None
    std: Annotated[str | None, _data("--std", metavar="R,G,B", help="Standard deviation of pixels in 0..1.")] = None
    classes: Annotated[
        Path | None, _data("--classes", metavar="FILE", help="Line i is the folder of class i; none: no labels.")
    ] = None
    annotations: Annotated[
        Path | None, _data("--annotations", metavar="FILE.json", help="COCO boxes of the folder's images: gives AP.")
    ] = None
    masks: Annotated[
        Path | None, _data("--masks", metavar="FOLDER", help="Label maps, NAME.png for NAME.jpg: gives mean IoU.")
    ] = None
    reduce_zero_label: Annotated[
        bool, _data("--reduce-zero-label", help="In label maps 0 is no class, and 1 the first (ADE20K).")
    ] = False
    layout: Annotated[str | None, _data("--layout", metavar="NCHW|NHWC", help="Order of the axes.")] = None
    channels: Annotated[str | None, _data("--channels", metavar="RGB|BGR", help="Order of the channels.")] = None
    interpolation: Annotated[
        str | None, _data("--interpolation", metavar="NAME", help="Of the resize: bicubic, bilinear, …")
    ] = None
    max_pixels: Annotated[
        int | None, _data("--max-pixels", metavar="N", help="An image with more pixels counts as corrupt.")
    ] = None
    data_options: Annotated[
        Path | None,
        _data("--data-options", metavar="FILE.toml", help="The same keys as TOML; what is given here wins."),
    ] = None

    def options(self, seed: int | None) -> "DataOptions":
        """What was given, over the file's keys. Raises UsageError for a key or a value that there is not."""
        from gpusq_onnx.data.options import DataOptions

        given: dict[str, Any] = {
            "path": self.data,
            "samples": self.samples,
            "calibrate": self.calibrate,
            "resize": self.resize,
            "crop": self.crop,
            "fit": self.fit,
            "mean": self.mean,
            "std": self.std,
            "classes": self.classes,
            "annotations": self.annotations,
            "masks": self.masks,
            "reduce_zero_label": self.reduce_zero_label or None,
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
