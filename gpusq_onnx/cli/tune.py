"""`gpusq-onnx tune MODEL`: which layers to prune and to quantise under a budget, as a recipe for `apply`.

Exit code 1 when the budget is missed: no recipe is written then, and a report only with `--analysis-only`. Under
`torchrun` and `accelerate launch` every process runs it, and the one of rank 0 writes and speaks.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

from typer import Option

from gpusq_onnx.cli.options import (
    STDOUT,
    CalibrationArgs,
    Full,
    Json,
    ModelPath,
    Quiet,
    Report,
    Seed,
    TruthArgs,
    default_cache,
    writable,
)
from gpusq_onnx.cli.spare import claim
from gpusq_onnx.marks import in_first_line
from gpusq_onnx.runtime.crew import leads

_look = partial(Option, rich_help_panel="How layers are looked at", show_default=False)
_training = partial(Option, rich_help_panel="Training what is chosen", show_default=False)
_goal = partial(Option, rich_help_panel="What to choose for", show_default=False)


class SensitivityOptions(TypedDict, total=False):
    """Arguments of `workflows.sensitivity` by name."""

    forms: list[str]
    cache: Path | None
    images: int
    exact: int


@dataclass(frozen=True)
class SensitivityArgs:
    """How the layers are looked at; the names are those of `workflows.sensitivity`."""

    forms: Annotated[
        str | None,
        _look("--forms", metavar="A,B", help="Only these: '2:4', int8, '2:4 int8', w4a8, '2:4 w4a8'."),
    ] = None
    images: Annotated[
        int | None, _look("--images", metavar="N", min=2, help="Look at each group with N of the images. Default: 64.")
    ] = None
    exact: Annotated[
        int | None, _look("--exact", metavar="N", min=0, help="Measure N pairs of group and form. Default: 48.")
    ] = None
    no_cache: Annotated[bool, _look("--no-cache", help="Measure layers anew, and keep nothing.")] = False

    def options(self) -> SensitivityOptions:
        """What was given, as the library takes it."""
        named = [name.strip() for name in (self.forms or "").split(",") if name.strip()]
        found: SensitivityOptions = {"forms": named, "cache": None if self.no_cache else default_cache()}
        if self.images is not None:
            found["images"] = self.images
        if self.exact is not None:
            found["exact"] = self.exact
        return found


@dataclass(frozen=True)
class GoalArgs:
    """What to choose for."""

    budget: Annotated[
        str | None,
        _goal("--budget", metavar="TEXT", help="Cheapest: 'agreement>=0.97', 'kl<=0.01', 'top1-drop<=1'."),
    ] = None
    at_most: Annotated[
        str | None, _goal("--at-most", metavar="P%", help="The nearest to the model at P% of its bit operations.")
    ] = None
    packed_size: Annotated[
        str | None, _goal("--packed-size", metavar="SIZE", help="The nearest in 8MB, or in 40% of its packed bytes.")
    ] = None
    target: Annotated[
        str | None,
        _goal("--target", metavar="NAME", help="Fit to ampere, ada, hopper, blackwell, orin, rtx or cpu."),
    ] = None
    measurements: Annotated[
        int,
        Option(
            "--measurements",
            metavar="N",
            min=1,
            rich_help_panel="What to choose for",
            help="Configurations to measure.",
        ),
    ] = 8
    analysis_only: Annotated[
        bool, _goal("--analysis-only", help="No recipe; the report also when the budget is missed.")
    ] = False


@dataclass(frozen=True)
class TrainingArgs:
    """How what is chosen is trained; the names are those of `workflows.tune`."""

    finetune: Annotated[
        int | None, _training("--finetune", metavar="EPOCHS", min=1, help="Train what is chosen, and choose again.")
    ] = None
    finetune_steps: Annotated[
        int | None, _training("--finetune-steps", metavar="N", min=1, help="The same for N steps.")
    ] = None
    rounds: Annotated[
        int | None, _training("--rounds", metavar="N", min=1, help="Training rounds at most. Default: 3.")
    ] = None

    def options(self) -> dict[str, Any]:
        """What was given, as the library takes it."""
        return {key: value for key, value in vars(self).items() if value is not None}


def tune(
    model: ModelPath,
    goal: GoalArgs,
    data: CalibrationArgs,
    truth: TruthArgs,
    look: SensitivityArgs,
    training: TrainingArgs,
    output: Annotated[
        Path | None,
        Option(
            "--output", "-o", metavar="FILE.toml", callback=writable, help="The recipe; default: MODEL.recipe.toml."
        ),
    ] = None,
    seed: Seed = None,
    report: Report = None,
    json: Json = None,
    full: Full = False,
    quiet: Quiet = False,
) -> None:
    """Choose a form for each layer under a budget: a recipe for apply."""
    from gpusq_onnx.cli.console import publish, show_sheet, warn
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.files import require_apart, staged
    from gpusq_onnx.workflows.tune import tune as tune_model

    recipe = output or model.with_suffix(".recipe.toml")
    require_apart(recipe, [model], "the recipe would overwrite the model")
    claim([model], {} if goal.analysis_only else {recipe: in_first_line}, report, json)
    with staged() as results:
        with open_progress(quiet=quiet or not leads()) as progress:
            found = tune_model(
                model,
                data=data.options(seed, truth),
                budget=goal.budget,
                at_most=goal.at_most,
                packed_size=goal.packed_size,
                output=None if goal.analysis_only else recipe,
                target=goal.target,
                measurements=goal.measurements,
                progress=progress,
                results=results,
                **training.options(),
                **look.options(),
            )
        if not leads():
            return
        for warning in found.sensitivity.warnings:
            warn(warning)
        if goal.analysis_only or found.chosen is not None:
            publish(found.report, str(found), report=report, json_target=json, results=results)
        results.commit()
    if not quiet and json != STDOUT:
        show_sheet(found.sheet(full=full), None if full else "--full")
    found.require()
