"""Options that travel together: a dataclass of them as one parameter of a typer command, and help in sections.

typer reads one option per parameter of a function. Verbs here share a dozen (data, pipeline, output), so a command
takes a dataclass and `grouped` spreads its fields into the signature that typer sees, then collects the values again.
Each field is `Annotated[type, typer.Option(..., rich_help_panel="Data")] = default`.

`SectionedCommand` prints the panels as plain sections: rich's help costs 0.15 s of imports, more than the
whole of `--help` may (`python -m tools.bench`).

`-` is stdout where an option says so (`allow_dash`); of any other path it is refused, before the option acts.
"""

import inspect
import re
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from typer import BadParameter, CallbackParam
from typer.core import TyperCommand

from gpusq_onnx.cli.belongs import require_company
from gpusq_onnx.cli.journal import ANYWHERE, Anywhere, settings
from gpusq_onnx.cli.memory import at_most
from gpusq_onnx.errors import UsageError

_NO_CHOICE = re.compile(r"'([^']*)' is not one of (.*)", re.DOTALL)  # typer's words


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Spread the dataclass parameters of `command` into single options, and add those of `Anywhere`."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    spread: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            spread += _parameters(groups[name])
        else:
            spread.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    anywhere = _parameters(Anywhere)
    spread = [_without_dash(parameter) for parameter in (*spread, *anywhere)]

    def run(**given: Any) -> None:
        for parameter in anywhere:  # they have acted already
            given.pop(parameter.name, None)
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        with at_most(settings().max_memory):
            command(**given)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    return run


def _parameters(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]


def _without_dash(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter; of a path that cannot be stdout, one that refuses `-`."""
    kind, info, *_ = get_args(parameter.annotation) or (None, None)
    if info is None or info.allow_dash or not _is_path(kind):
        return parameter
    act = info.callback

    def refuse(param: CallbackParam, given: Any) -> Any:
        if any(str(path) == "-" for path in (given if isinstance(given, (list, tuple)) else [given])):
            name = param.opts[0] if param.param_type_name == "option" else "the argument"
            raise UsageError("'-' is no file here", where=f"{name} -", hint="name a file; - is stdout, for --json")
        return given if act is None else act(given)

    known = copy(info)
    known.callback = refuse
    return parameter.replace(annotation=Annotated[kind, known])


def _is_path(kind: Any) -> bool:
    """Whether it is a path, or a list of them, that may be left out."""
    return kind is Path or any(map(_is_path, get_args(kind)))


class SectionedCommand(TyperCommand):
    """A command whose plain help lists its options under their panel's name, and which takes no surplus arguments.

    The context must allow extra arguments: they are refused here, where what a shell makes of `{a=1,b=2}` can be
    distinguished from a plain mistake.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options; a value that is no word of the list is reported with the nearest one."""
        try:
            return super().parse_args(ctx, args)
        except BadParameter as error:
            found = _NO_CHOICE.search(error.message)
            if found is None or error.param is None:
                raise
            from gpusq_onnx.pipeline.grammar import did_you_mean

            wrong, valid = found[1], re.findall(r"'([^']*)'", found[2])
            raise UsageError(
                f"{error.param.opts[0]} does not take {wrong!r}",
                expected=f"one of {', '.join(valid)}",
                hint=did_you_mean(wrong, valid) or f"see {ctx.command_path} --help",
            ) from None

    def invoke(self, ctx: Any) -> Any:
        """Refuse surplus arguments, then run."""
        from gpusq_onnx.pipeline.grammar import shell_damage

        positional = [ctx.params[p.name] for p in self.params if p.param_type_name == "argument"]
        given = [word for one in positional for word in (one if isinstance(one, (list, tuple)) else [one])]
        words = [str(word) for word in [*given, *ctx.args] if word is not None]
        damage = shell_damage([word for word in words if not Path(word).exists()])
        if damage:
            raise damage
        if ctx.args:
            raise UsageError(
                f"unexpected argument {ctx.args[0]!r}",
                expected=" ".join(self._arguments()),
                hint=f"see {ctx.command_path} --help",
            )
        require_company(str(ctx.info_name), self._given(ctx))
        return super().invoke(ctx)

    def _given(self, ctx: Any) -> list[str]:
        """The options that were given on the command line, by their long names."""
        named = [p for p in self.params if p.param_type_name == "option"]
        return [p.opts[0] for p in named if ctx.get_parameter_source(p.name).name == "COMMANDLINE"]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] ORIGINAL COMPRESSED...`."""
        return ["[OPTIONS]", *self._arguments()]

    def _arguments(self) -> list[str]:
        return [p.metavar or str(p.name) for p in self.params if p.param_type_name == "argument"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel, in the order in which the options were declared.

        Options of any verb are explained once, by `gpusq-onnx --help`.
        """
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                fallback = "Arguments" if argument else "Options"
                if argument:  # without typer's word for its type
                    record = parameter.metavar or str(parameter.name), record[1]
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or fallback, []).append(record)
        anywhere = [names.split()[0].rstrip(",") for names, _ in sections.pop(ANYWHERE, [])]
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        formatter.write_paragraph()
        formatter.write_text(f"For any verb: {', '.join(anywhere)} (gpusq-onnx -h)")
