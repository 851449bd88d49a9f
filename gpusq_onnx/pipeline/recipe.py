"""A pipeline as TOML: ordered `[[pass]]` tables, each with `name` and the options of the pass beside it.

    [[pass]]
    name = "prune24"
    method = "sparsegpt"

    [[pass]]
    name = "qdq-int8"

The second spelling of `grammar.Pipeline`; both print back: `loads(dumps(p)) == p`. Values are the grammar's: strings,
integers, decimals, booleans and flat lists of these. Limits: nothing but `pass` is at the top, so a misspelt key is
an error and not silence.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from gpusq_onnx.errors import UsageError
from gpusq_onnx.parsing import parse_toml, read_bytes
from gpusq_onnx.pipeline.grammar import Pipeline, Scalar, Step, Value, did_you_mean


def load(path: Path) -> Pipeline:
    """Read a recipe file. Raises UsageError for a missing file, broken TOML and anything that is not a recipe."""
    try:
        text = read_bytes(path, "--recipe").decode()
    except FileNotFoundError:
        raise UsageError(f"the recipe {str(path)!r} does not exist", hint="check --recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {str(path)!r} cannot be read", found=str(error)) from error
    return loads(text, where=str(path))


def loads(text: str, *, where: str = "recipe") -> Pipeline:
    """Read the text of a recipe; `where` names it in errors."""
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise UsageError("the recipe is not valid TOML", where=where, found=str(error)) from error
    unknown = sorted(set(document) - {"pass"})
    if unknown:
        raise UsageError(
            f"the recipe holds the unknown key {unknown[0]!r}",
            where=where,
            expected="only [[pass]] tables",
            hint=did_you_mean(unknown[0], ["pass"]),
        )
    tables = document.get("pass")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError("the recipe holds no [[pass]] table", where=where, expected='[[pass]] and name = "prune24"')
    numbered = enumerate(tables, start=1)
    return Pipeline(tuple(_step(table, f"{where}, [[pass]] number {number}") for number, table in numbered))


def dumps(pipeline: Pipeline) -> str:
    """The recipe's text, options in alphabetical order."""
    # Table by table, because tomli-w writes a list of short ones inline, which nobody edits with pleasure.
    tables = ({"name": step.name, **dict(sorted(step.options.items()))} for step in pipeline.steps)
    return "\n".join(f"[[pass]]\n{tomli_w.dumps(table)}" for table in tables)


def _step(table: Mapping[str, object], where: str) -> Step:
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise UsageError("a [[pass]] table has no name", where=where, expected='name = "prune24"', found=repr(name))
    options = {key: _value(value, f"{where}, {key}") for key, value in table.items() if key != "name"}
    return Step(name, options)


def _value(value: object, where: str) -> Value:
    return [_scalar(item, where) for item in value] if isinstance(value, list) else _scalar(value, where)


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise UsageError(
        "a recipe's value is of a kind that no option takes",
        where=where,
        expected="a string, a finite number, a boolean or a flat list of these",
        found=f"{value!r} ({type(value).__name__})",
    )
