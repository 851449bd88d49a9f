"""docs/reports.md: the keys of what `--report` and `--json` write, from the dataclasses that are dumped.

What a key means is its line under "Attributes:" in the class's docstring, else what the class of its value says of
itself. `tests/docs/test_reports.py` holds the page against reports that the verbs write.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from inspect import cleandoc
from typing import Any, NamedTuple, get_args, get_type_hints

from gpusq_onnx.graph.pack.container import Contents
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.report.benchmark import Benchmark
from gpusq_onnx.report.checking import CheckResult
from gpusq_onnx.report.engine import EngineDocument
from gpusq_onnx.report.inspection import Inspection
from gpusq_onnx.report.kernels import KernelClass
from gpusq_onnx.report.tuning import SensitivityDocument, TuningDocument


class Written(NamedTuple):
    """What a verb writes: the dataclass, where it is one, and the keys that its JSON has besides."""

    verbs: str
    kind: type | None
    more: Mapping[str, str]


TOOL = "the program and its version"
REPORTS = (
    Written(
        "`plan`, `apply`",
        Outcome,
        {
            "tool": TOOL,
            "predicted": "how many weights each kernel class of TensorRT can get; where weights were looked at",
        },
    ),
    Written("`check`", CheckResult, {"tool": TOOL, "passed": "every gate is met, and nothing refuses the model"}),
    Written("`tune`", TuningDocument, {}),
    Written("`plan --sensitivity`", SensitivityDocument, {}),
    Written("`build`", EngineDocument, {}),
    Written("`bench`", Benchmark, {"tool": TOOL}),
    Written(
        "`inspect`",
        Inspection,
        {
            "tool": TOOL,
            "model": "the file",
            "kernels": "how many weights each kernel class gets",
            "advice": "what the model can still take that makes more of its weights sparse; sentences",
        },
    ),
    Written(
        "`pack`",
        Contents,
        {"tool": TOOL, "model": "the file that was packed", "packed": "the file that was written", "bytes": "its size"},
    ),
    Written(
        "`cam`",
        None,
        {
            "tool": TOOL,
            "models": "of each, `path` and the `layer` that Grad-CAM is taken from",
            "data": "what the images are and how they became inputs",
            "methods": "the maps that were drawn",
            "examples": "of each image, what each model sees and how far maps agree, without pictures",
            "warnings": "sentences about the data",
            "notes": "what was left out of the data",
            "written": "the files",
        },
    ),
)

HEAD = """\
# Reports

Made from the code by `python -m tools.docs`: do not edit. What `--report FILE.json` and `--json` write; in
Python, `.report` of what `plan`, `compress`, `sensitivity` and `tune` give, and `.to_dict()` of what the others do.
The keys are [public](python.md#what-is-stable); what a pass puts into `findings` and `detail` is that pass's own.
"""

_INDENT = 4  # of an attribute in a docstring
_ENTRY = re.compile(r"^([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)$")
_PLAIN = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "NoneType": "null", "Any": "any"}


def page() -> str:
    """The page, as Markdown."""
    below: dict[type, None] = {}
    lines = [HEAD]
    for written in REPORTS:
        lines += [f"## {written.verbs.replace('`', '')}\n", *_table(written.kind, below, written.more)]
    lines.append("## Values\n")
    done: set[type] = set()
    while left := [kind for kind in below if kind not in done]:
        done.add(left[0])
        table = _table(left[0], below, {}) if fields(left[0]) else ()
        lines += [f"### {left[0].__name__}\n", f"{_in_json(_whole(left[0]))}\n", *table]
    return "\n".join(lines)


def keys(written: Written) -> set[str]:
    """The keys that the page says a report has."""
    return {field.name for field in _fields(written.kind)} | set(written.more)


def _fields(kind: type | None) -> tuple[Field[Any], ...]:
    return () if kind is None else fields(kind)


def _table(kind: type | None, below: dict[type, None], more: Mapping[str, str]) -> Iterator[str]:
    hints, said = (get_type_hints(kind), meanings(kind)) if kind else ({}, {})
    yield "| key | value | meaning |\n|---|---|---|"
    for key, text in more.items():
        if key not in hints:
            yield f"| `{key}` | | {text} |"
    for field in _fields(kind):
        hint = hints[field.name]
        meaning = said.get(field.name) or _of_value(hint)
        yield f"| `{field.name}` | {_value(hint, below)} | {_in_json(meaning)} |"
    yield ""


def _of_value(hint: Any) -> str:
    """What the class of a value says of itself; "" where it is a plain one."""
    parts = [part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)]
    return _summary(parts[0]) if parts else ""


def _in_json(text: str) -> str:
    return re.sub(r"\bNone\b", "null", text.removesuffix(".")).replace("|", "\\|")


def meanings(kind: type) -> dict[str, str]:
    """What the docstring says of each attribute, those that are inherited included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, there, text = _doc(base).partition("Attributes:\n")
        names: Sequence[str] = ()
        for line in text.splitlines() if there else ():
            entry = _ENTRY.match(line.strip())
            if entry and len(line) - len(line.lstrip()) == _INDENT:
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            else:
                break
    return found


def _doc(kind: type) -> str:
    return cleandoc(kind.__doc__ or "")


def _whole(kind: type) -> str:
    return " ".join(_doc(kind).partition("Attributes:\n")[0].split())


def _summary(kind: type) -> str:
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def _value(hint: Any, below: dict[type, None]) -> str:
    """A type in words; classes that it holds are put into `below`, and linked."""
    if hint is KernelClass:
        return "text"
    if is_dataclass(hint) and isinstance(hint, type):
        below[hint] = None
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    parts = [part for part in get_args(hint) if part is not ...]
    name = getattr(hint, "__name__", "")
    origin = getattr(getattr(hint, "__origin__", None), "__name__", "")
    if origin in ("tuple", "list", "Sequence"):
        return "list of " + " and ".join(dict.fromkeys(_value(part, below) for part in parts))
    if origin in ("dict", "Mapping"):
        return f"object of {_value(parts[1], below)}"
    if parts and all(isinstance(part, str) for part in parts):
        return " or ".join(f'"{part}"' for part in parts)
    if parts:
        return " or ".join(dict.fromkeys(_value(part, below) for part in parts))
    return _PLAIN.get(name, name)
