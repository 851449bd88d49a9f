"""The `--passes` text: `prune24{method=sparsegpt},qdq-int8{profile=sparse-int8}` to a `Pipeline`, and back.

    pipeline := step ("," step)*
    step     := name [ "{" [ option (("," | " ") option)* ] "}" ]
    option   := key "=" value
    value    := scalar | "[" [ scalar (";" scalar)* ] "]"
    scalar   := true | false | integer | decimal | bare word | "quoted" | 'quoted'

A bare word holds no blank and none of `, ; = { } [ ] " '`, so globs, `2:4` and tensor paths need no quotes.
`str(pipeline)` is canonical (options in alphabetical order) and `parse(str(p)) == p`. The form follows MLIR's
`--pass-pipeline`; the same pipeline as TOML is in `recipe.py`.

Limits: lists do not nest; no key is called `name` (a recipe keeps the pass there). Which passes and options exist is
not known here: `table.py` answers that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpusq_onnx.errors import UsageError

if TYPE_CHECKING:
    from gpusq_onnx.pipeline.base import Pass

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE = re.compile(r"""[^\s,;={}\[\]"']+""")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"' + "|" + r"'(?:[^'\\]|\\.)*'", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NEAR, _BEGINNING = 0.65, 3  # of names that are offered for another: likeness (1: equal), letters of a beginning
_DIGITS = 300  # of an integer; a longer one is a word, which no option takes
_STRAY_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_,-]*[{=]|[A-Za-z_][A-Za-z0-9_]*=[^{}]*\}")

QUOTE_HINT = (
    "quote the text, --passes 'prune24{method=sparsegpt},qdq-int8' (the shell takes an unquoted {a=1,b=2} apart), "
    "or use --set prune24.method=sparsegpt, which needs no quotes"
)


@dataclass(frozen=True)
class Step:
    """One pass and the options that were given for it; options that are not given are the pass's defaults.

    `kind` is the pass's class where the caller brought it; None: the table has the name.
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict)
    kind: type[Pass[Any]] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}{{{','.join(f'{key}={print_value(self.options[key])}' for key in sorted(self.options))}}}"


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return ",".join(str(step) for step in self.steps)


def parse(text: str) -> Pipeline:
    """Read a pipeline.

    Raises:
        UsageError: the text does not follow the grammar; names the character, and the shell's brace expansion where
            that is the cause.
    """
    scan = _Scanner(text)
    steps = [_step(scan)]
    while not scan.at_end():
        scan.expect(",", "',' and the next pass, or the end")
        steps.append(_step(scan))
    return Pipeline(tuple(steps))


def apply_overrides(pipeline: Pipeline, overrides: Iterable[str]) -> Pipeline:
    """Set options from `--set PASS.KEY=VALUE` texts, on every step of that name.

    Later texts win over earlier ones, and all win over the pipeline. The text ends where the argument ends, so a value
    here may hold blanks and commas without quotes.
    """
    steps = list(pipeline.steps)
    for text in overrides:
        target, equals, value = text.partition("=")
        name, dot, key = target.partition(".")
        if not (equals and dot and _NAME.fullmatch(name) and _KEY.fullmatch(key)):
            raise UsageError(
                f"--set {text!r} cannot be read",
                expected="PASS.KEY=VALUE",
                hint="e.g. --set prune24.method=sparsegpt",
            )
        if all(step.name != name for step in steps):
            names = sorted({step.name for step in steps})
            raise UsageError(
                f"--set names the pass {name!r}, which is not in the pipeline",
                where=f"--set {text}",
                expected=f"one of {', '.join(names)}",
                hint=did_you_mean(name, names),
            )
        parsed = _whole_value(value, f"--set {text}")
        steps = [replace(s, options={**s.options, key: parsed}) if s.name == name else s for s in steps]
    return Pipeline(tuple(steps))


def shell_damage(words: Sequence[str]) -> UsageError | None:
    """The error to raise if `words`, which no argument wanted, look like what is left of an unquoted `{a=1,b=2}`.

    bash makes `prune24a=1 prune24b=2` of `prune24{a=1,b=2}`, and `prune24{a=1` `b=2}` of `prune24{a=1 b=2}`.
    """
    stray = [word for word in words if _STRAY_OPTION.match(word)]
    if not stray:
        return None
    return UsageError(
        "the shell took the --passes text apart",
        expected="the whole pipeline as one argument",
        found=f"{', '.join(map(repr, stray))} as separate arguments",
        hint=QUOTE_HINT,
    )


def did_you_mean(word: str, valid: Iterable[str]) -> str | None:
    """`did you mean 'x'?` for the nearest valid word, or the first that goes on; None where none is near.

    The dashes of options do not count.
    """
    import difflib  # only errors need it

    word, names = word.lstrip("-"), {name.lstrip("-"): name for name in valid}
    longer = [name for name in names if len(word) >= _BEGINNING and name.startswith(word)]
    near = difflib.get_close_matches(word, names, n=1, cutoff=_NEAR) or longer
    return f"did you mean {names[near[0]]!r}?" if near else None


def read_scalar(text: str) -> Scalar:
    """A bare word as bool, int, float or, failing these, str. A number that is too large stays a word."""
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text) and len(text) <= _DIGITS:
        return int(text)
    if _DECIMAL.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


class _Scanner:
    """A position in a text, and the errors that point at it."""

    def __init__(self, text: str, where: str = "--passes") -> None:
        self.text, self.where, self.at = text, where, 0

    def skip_blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def at_end(self) -> bool:
        self.skip_blanks()
        return self.at == len(self.text)

    def accept(self, char: str) -> bool:
        self.skip_blanks()
        found = self.text[self.at : self.at + 1] == char
        self.at += found
        return found

    def expect(self, char: str, wanted: str) -> None:
        if not self.accept(char):
            raise self.error(wanted)

    def match(self, pattern: re.Pattern[str], wanted: str) -> str:
        self.skip_blanks()
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.error(wanted)
        self.at = found.end()
        return found.group()

    def error(self, expected: str, hint: str | None = None) -> UsageError:
        rest = self.text[self.at :]
        cut = not rest and "{" in self.text  # by an unquoted blank or semicolon, most likely
        return UsageError(
            f"{self.where} {self.text!r} cannot be read",
            where=f"character {self.at + 1}",
            expected=expected,
            found=repr(rest[:24]) if rest else "the end of the text",
            hint=hint
            or (QUOTE_HINT if cut else "write PASS{KEY=VALUE,KEY=VALUE},PASS and quote the whole for the shell"),
        )


def _step(scan: _Scanner) -> Step:
    name = scan.match(_NAME, "the name of a pass")
    scan.skip_blanks()
    if scan.text[scan.at : scan.at + 1] == "=":
        raise scan.error("'{' before options, ',' or the end", f"options are in braces; {QUOTE_HINT}")
    if not scan.accept("{"):
        return Step(name)
    options: dict[str, Value] = {}
    while not scan.accept("}"):
        if scan.at_end():
            raise scan.error("'}' after the options", QUOTE_HINT)
        start = scan.at
        key = scan.match(_KEY, "an option KEY=VALUE or '}'")
        if key in options or key == "name":
            scan.at = start
            reason = "'name' is the pass's own" if key == "name" else f"{key!r} is given twice"
            raise scan.error(f"another key; {reason}")
        scan.expect("=", f"'=' and a value for {key!r}")
        options[key] = _value(scan)
        if scan.accept(",") and scan.text[scan.at :].lstrip()[:1] in (",", "}"):
            raise scan.error("an option KEY=VALUE after ','")
    return Step(name, options)


def _value(scan: _Scanner) -> Value:
    if not scan.accept("["):
        return _scalar(scan, "a value: a word, a number, true, false, 'quoted text' or a list [a;b]")
    items: list[Scalar] = []
    while not scan.accept("]"):
        if items:
            scan.expect(";", "';' between the items of a list, or ']'")
        items.append(_scalar(scan, "an item of the list, or ']'"))
    return items


def _scalar(scan: _Scanner, wanted: str) -> Scalar:
    scan.skip_blanks()
    if scan.text[scan.at : scan.at + 1] in ('"', "'"):
        quoted = scan.match(_QUOTED, "the closing quote")
        return _ESCAPE.sub(_unescape, quoted[1:-1])
    return read_scalar(scan.match(_BARE, wanted))


def _whole_value(text: str, where: str) -> Value:
    """The value of `--set`: a list or quoted text by the grammar, anything else as one scalar."""
    if text[:1] not in ("[", '"', "'"):
        return read_scalar(text)
    scan = _Scanner(text, where)
    value = _value(scan)
    if not scan.at_end():
        raise scan.error("the end of the value")
    return value


def _unescape(match: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t", "r": "\r"}.get(match.group(1), match.group(1))


def print_value(value: Value) -> str:
    """The value as the grammar writes it; `parse` reads it back."""
    if isinstance(value, list):
        return f"[{';'.join(print_value(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        plain = _BARE.fullmatch(value) and isinstance(read_scalar(value), str)
        return value if plain else _quote(value)
    return repr(value)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + '"'
