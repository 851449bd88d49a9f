"""The verbs, a row each, imported when they are asked for.

`--help` needs names and a line each, a verb needs its own module alone: so the first costs what typer costs.
"""

from collections import UserDict
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_VERB = {**HELP, "allow_extra_args": True}  # SectionedCommand refuses them

plain = partial(typer.Typer, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


class Verb(NamedTuple):
    """Where in `gpusq_onnx.cli` it is, as `module.function`, and what it does in a line; or several under one name."""

    where: str
    summary: str
    below: dict[str, "Verb"] = {}  # noqa: RUF012 - never written to

    def command(self, name: str) -> Any:
        """Import it, and make the command of it that typer runs."""
        from gpusq_onnx.cli.groups import SectionedCommand, grouped

        app = plain(add_completion=False)
        for word, verb in (self.below or {name: self}).items():
            module, _, function = verb.where.partition(".")
            call = getattr(import_module(f"gpusq_onnx.cli.{module}"), function)
            app.command(word, cls=SectionedCommand, context_settings=_VERB)(grouped(call))
        app.info.help = self.summary
        return typer.main.get_command(app)


VERBS = {
    "apply": Verb("apply.apply", "Prune and quantise: run the passes, check, write the new model."),
    "plan": Verb("plan.plan", "Show what apply would do to each tensor, and why; writes no model."),
    "tune": Verb("tune.tune", "Choose a form for each layer under a budget; write it as a recipe."),
    "inspect": Verb("inspect.inspect", "Show each weight: pattern, Q/DQ, type, TensorRT's possible kernel."),
    "check": Verb("check.check", "Compare two models on the same data: outputs, classes, accuracy."),
    "build": Verb("build.build", "Build a TensorRT engine and show what became of each weight."),
    "bench": Verb("bench.bench", "Time models side by side, beside dense FP32, TF32, FP16 and INT8."),
    "report": Verb("report.report", "Draw one self-contained HTML page to attach to a pull request."),
    "cam": Verb("cam.cam", "Draw where models look: class activation maps and attention."),
    "pack": Verb("pack.pack", "Store a pruned model in the space that its pattern needs."),
    "unpack": Verb("pack.unpack", "Restore the model that was packed: the same bytes, or an error."),
    "help": Verb("help.help_", "Show the help of a verb: the same as VERB --help."),
    "passes": Verb(
        "passes",
        "List the passes and presets, or show one with its options.",
        {
            "list": Verb("passes.list_passes", "List the passes and presets."),
            "show": Verb("passes.show", "Show a pass with its options, a preset, or a target."),
        },
    ),
}


class _Commands(UserDict[str, Any]):
    """The commands by name, imported one by one as they are asked for."""

    def __getitem__(self, name: str) -> Any:
        if self.data[name] is None:
            self.data[name] = VERBS[name].command(name)
        return self.data[name]


class Verbs(TyperGroup):
    """The group of `VERBS`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands(dict.fromkeys(VERBS))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a line each, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])
