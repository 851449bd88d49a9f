"""The table: names, presets, plug-ins and options, with errors that list what is valid."""

import re
import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Literal

import pytest
from pydantic import Field

from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.base import Pass, PassOptions
from gpusq_onnx.pipeline.grammar import parse


class _Options(PassOptions):
    method: Literal["fast", "careful"] = "fast"
    damping: float = Field(0.01, gt=0, le=1)
    roles: list[str] = Field([])


class _Toy(Pass):
    name, summary, source = "toy", "does nothing", "a test"
    Options = _Options

    def plan(self, *args: object, **kwargs: object) -> list:  # type: ignore[override, type-arg]
        return []

    def apply(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        return None


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points as if other packages were installed; `toy` is there from the start."""
    module = ModuleType("toy_plugin")
    module.Toy = _Toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_plugin", module)
    points = [EntryPoint("toy", "toy_plugin:Toy", table.ENTRY_POINT_GROUP)]
    monkeypatch.setattr(table, "entry_points", lambda group: points if group == table.ENTRY_POINT_GROUP else [])
    return points


@pytest.mark.parametrize("name", list(table.BUILTIN))
def test_every_row_is_a_pass_of_that_name(name: str) -> None:
    kind = table.rows()[name].load()
    assert issubclass(kind, Pass)
    assert kind.name == name
    assert kind.summary
    assert kind.source
    assert all(field.description for field in kind.Options.model_fields.values()), "an option without help"


@pytest.mark.parametrize("name", list(table.PRESETS))
def test_every_preset_resolves_to_its_passes(name: str) -> None:
    expanded = table.expand(parse(name))
    assert str(expanded) == table.PRESETS[name].text
    assert [p.name for p in table.resolve(expanded)] == [step.name for step in expanded.steps]


def test_presets_mix_with_passes() -> None:
    assert str(table.expand(parse("prune24,int8-accurate"))) == "prune24,qdq-int8{profile=accurate}"


def test_a_plugin_is_a_pass_like_any_other(plugins: list[EntryPoint]) -> None:
    (toy,) = table.resolve(parse("toy{method=careful,roles=[a;b]}"))
    assert toy.options == _Options(method="careful", roles=["a", "b"])


@pytest.mark.parametrize("name", ["prune24", "sparse-int8", "toy"])
def test_a_name_defined_twice_is_an_error(plugins: list[EntryPoint], name: str) -> None:
    plugins.append(EntryPoint(name, "other:Pass", table.ENTRY_POINT_GROUP))
    with pytest.raises(EnvironmentLacking, match=f"'{name}' is defined twice"):
        table.rows()


def test_a_broken_plugin_is_named(plugins: list[EntryPoint]) -> None:
    plugins.append(EntryPoint("broken", "no_such_module_here:Pass", table.ENTRY_POINT_GROUP))
    with pytest.raises(EnvironmentLacking, match="no_such_module_here"):
        table.resolve(parse("broken"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tyo", "did you mean 'toy'"),
        ("zzz", "passes list"),
        ("sparse-int8{a=1}", "takes no options"),
        ("toy{methd=fast}", "did you mean 'method'"),
        ("toy{methd=fast}", "damping, method, roles"),
        ("toy{method=carefull}", "did you mean 'careful'"),
        ("toy{damping=2}", "less than or equal to 1"),
        ("toy{damping=fast}", "number"),
        ("toy{roles=true}", "string"),
    ],
)
def test_errors_say_what_is_valid(plugins: list[EntryPoint], text: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        table.resolve(parse(text))
