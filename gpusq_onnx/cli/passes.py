"""`gpusq-onnx passes list|show`: what `--passes` takes, read from the table and the passes themselves."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from gpusq_onnx.cli.help import complete_shown
from gpusq_onnx.cli.options import Json
from gpusq_onnx.cli.spare import claim
from gpusq_onnx.errors import UsageError
from gpusq_onnx.marks import AUTHOR
from gpusq_onnx.pipeline.grammar import print_value

if TYPE_CHECKING:
    from gpusq_onnx.pipeline.targets import Target


def list_passes(json: Json = None) -> None:
    """List the passes and presets."""
    from gpusq_onnx.cli.console import show, show_columns, write_json
    from gpusq_onnx.pipeline import table

    claim([], {}, json=json)
    passes = [_identity(row) for row in table.rows().values()]
    presets = [{"name": name, "passes": p.text, "summary": p.summary} for name, p in table.PRESETS.items()]
    if json:
        write_json({"tool": AUTHOR, "passes": passes, "presets": presets}, json)
        return
    show_columns(["pass", "summary"], [[p["name"], p["summary"]] for p in passes])
    show()
    show_columns(["preset", "summary"], [[p["name"], p["summary"]] for p in presets])
    show("\noptions of a pass, or the passes of a preset: gpusq-onnx passes show NAME")
    show("what runs where: gpusq-onnx passes show targets")


def show(
    name: Annotated[
        str,
        Argument(
            metavar="NAME",
            help="A pass, a preset, a target, or 'targets': all of them.",
            autocompletion=complete_shown,
            show_default=False,
        ),
    ],
    json: Json = None,
) -> None:
    """Show a pass with its options, a preset, or a target."""
    from gpusq_onnx.cli import console
    from gpusq_onnx.pipeline import recipe, table
    from gpusq_onnx.pipeline.grammar import did_you_mean, parse
    from gpusq_onnx.pipeline.targets import TARGETS

    claim([], {}, json=json)
    if name == "targets":
        _show_targets(json)
        return
    if name in TARGETS:
        _show_target(TARGETS[name], json)
        return
    rows = table.rows()
    if name in table.PRESETS:
        preset = table.PRESETS[name]
        if json:
            found = {"tool": AUTHOR, "name": name, "passes": preset.text, "summary": preset.summary}
            console.write_json(found, json)
        else:
            console.show(f"{name}: {preset.summary}\n\n{preset.text}\n\n{recipe.dumps(parse(preset.text))}")
        return
    if name not in rows:
        valid = [*rows, *table.PRESETS, *TARGETS, "targets"]
        raise UsageError(
            f"there is no pass, preset or target named {name!r}",
            expected=f"one of {', '.join(valid)}",
            hint=did_you_mean(name, valid) or "see gpusq-onnx passes list",
        )
    identity, options = _identity(rows[name]), _options(rows[name])
    if json:
        console.write_json({"tool": AUTHOR, **identity, "options": options}, json)
        return
    console.show(
        f"{name} {identity['version']}: {identity['summary']}\nsource: {identity['source']}\n"
        f"writes the same bytes on: {identity['same_bytes']}\n"
    )
    columns = ["option", "takes", "default", "meaning"]
    console.show_columns(columns, [[option[column] for column in columns] for option in options])


def _show_targets(json: Json) -> None:
    """The table that `--target` reads; of its nine columns those that fit a screen."""
    from gpusq_onnx.cli import console
    from gpusq_onnx.pipeline.targets import COLUMNS, TARGETS

    if json:
        console.write_json({"tool": AUTHOR, "targets": [row.to_dict() for row in TARGETS.values()]}, json)
        return
    fitting = [COLUMNS.index(title) for title in ("target", "GPUs", "runtime", "sparse kernels")]
    cells = [row.cells() for row in TARGETS.values()]
    console.show_columns([COLUMNS[place] for place in fitting], [[row[place] for place in fitting] for row in cells])
    console.show("\nall of one: gpusq-onnx passes show NAME")


def _show_target(row: "Target", json: Json) -> None:
    from gpusq_onnx.cli import console
    from gpusq_onnx.pipeline.targets import COLUMNS

    if json:
        console.write_json({"tool": AUTHOR, **row.to_dict()}, json)
        return
    (_, name), *facts = zip(COLUMNS, row.cells(), strict=True)
    console.show_columns([name, ""], [[title, text] for title, text in facts])


def _identity(row: Any) -> dict[str, str]:
    kind = row.load()
    origin = row.distribution or "gpusq-onnx"
    return {
        "name": row.name,
        "summary": kind.summary,
        "version": str(kind.version),
        "source": kind.source,
        "same_bytes": kind.same_bytes(),
        "distribution": origin,
    }


def _options(row: Any) -> list[dict[str, str]]:
    schema: Mapping[str, Any] = row.load().Options.model_json_schema()
    found = []
    for key, field in schema.get("properties", {}).items():
        meaning = field.get("description", "")
        source = f" [{field['source']}]" if "source" in field else ""
        found.append(
            {
                "option": key,
                "takes": _takes(field, schema.get("$defs", {})),
                "default": _default(field),
                "meaning": meaning + source,
            }
        )
    return found


def _default(field: Mapping[str, Any]) -> str:
    """As one would write it in `--passes`."""
    value = field.get("default", "required")
    if value is None:
        return "-"
    return print_value(value) if isinstance(value, str | bool | int | float | list) else str(value)


def _takes(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type and range of one option, from its JSON schema, in words."""
    if "$ref" in field:
        return _takes(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in field:
        kinds = [_takes(kind, definitions) for kind in field["anyOf"] if kind.get("type") != "null"]
        return " or ".join(kinds)
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("type") == "array":
        return f"[{_takes(field.get('items', {}), definitions)};…]"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return " ".join([{"boolean": "true | false"}.get(field.get("type", ""), str(field.get("type", "text"))), *limits])
