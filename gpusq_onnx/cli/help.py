"""`gpusq-onnx help VERB` is `gpusq-onnx VERB --help`; and the names of passes for a shell that completes them."""

from typing import Annotated, Any

import typer

from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline.grammar import did_you_mean


def help_(
    context: typer.Context,
    verb: Annotated[
        list[str] | None, typer.Argument(metavar="[VERB]", help="Such as check, or passes show.", show_default=False)
    ] = None,
) -> None:
    """Show the help of a verb: the same as VERB --help."""
    here: Any = context.parent
    for name in verb or []:
        verbs = getattr(here.command, "commands", {})
        if name not in verbs:
            raise UsageError(
                f"there is no verb named {name!r}",
                expected=f"one of {', '.join(verbs)}" if verbs else f"no word after {here.command_path!r}",
                hint=did_you_mean(name, verbs) or "see gpusq-onnx --help",
            )
        here = type(here)(verbs[name], info_name=name, parent=here, **verbs[name].context_settings)
    typer.echo(here.get_help())


def complete_pass(incomplete: str) -> list[str]:
    """The passes and presets whose name begins so; plug-ins, too."""
    from gpusq_onnx.pipeline import table

    return [name for name in (*table.rows(), *table.PRESETS) if name.startswith(incomplete)]


def complete_shown(incomplete: str) -> list[str]:
    """What `passes show` takes and begins so."""
    from gpusq_onnx.pipeline.targets import TARGETS

    return complete_pass(incomplete) + [name for name in (*TARGETS, "targets") if name.startswith(incomplete)]


def complete_pipeline(incomplete: str) -> list[str]:
    """What `--passes` can go on with: the pipeline as it is so far, and a pass or preset after its last comma."""
    if incomplete.count("{") > incomplete.count("}"):  # among a pass's options
        return []
    done, comma, started = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in complete_pass(started)]
