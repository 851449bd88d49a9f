"""The arrows of the house: every import of the core is walked, and one that runs back fails."""

import ast
from collections import Counter
from functools import cache

import pytest
from arrows import FLOORS, ROOT, Import, area, circles, cycles, imports, modules, violations

MODULES = list(modules())


@cache
def walked() -> tuple[Import, ...]:
    """Every import of the core; not read where tests are only collected."""
    return tuple(found for name, path in MODULES for found in imports(name, path))


def test_no_import_breaks_the_architecture():
    assert violations(walked()) == []


def test_no_two_areas_import_each_other():
    assert cycles(walked()) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(walked()) == []
    back = Import("gpusq_onnx.data.options", "gpusq_onnx.data.source.Source")
    assert set(circles([*walked(), back])) == {"gpusq_onnx.data.options", "gpusq_onnx.data.source"}


def test_no_two_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for name, path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_every_area_has_a_floor():
    areas = {name.split(".")[1] for name, _ in MODULES if "." in name}
    assert areas <= set(FLOORS)


def test_the_walk_sees_the_linked_packages():
    names = {name for name, _ in MODULES}
    assert {"gpusq_onnx.passes", "gpusq_onnx.runtime.trt_cpu"} <= names
    assert any(found.target.startswith("gpusq_onnx.errors.") for found in walked())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("gpusq_onnx.quant.formats", "gpusq_onnx.graph.model.Model"),
        ("gpusq_onnx.graph.io", "gpusq_onnx.pipeline.base.Pass"),
        ("gpusq_onnx.pipeline.manager", "gpusq_onnx.passes.prune.Prune24"),
        ("gpusq_onnx.cli.apply", "gpusq_onnx.passes.prune.Prune24"),
        ("gpusq_onnx.workflows.apply", "gpusq_onnx.passes.prune.Prune24"),
        ("gpusq_onnx.workflows.apply", "gpusq_onnx.cli.console.show"),
        ("gpusq_onnx.passes.prune", "gpusq_onnx.workflows.apply.compress"),
        ("gpusq_onnx.workflows.inspect", "rich.table"),
        ("gpusq_onnx.passes.prune", "gpusq_onnx.cli.console.show"),
        ("gpusq_onnx.passes.prune", "passes.qdq"),
        ("gpusq_onnx.passes.prune", "onnx_graphsurgeon"),
        ("gpusq_onnx.pipeline.manager", "rich.progress"),
        ("gpusq_onnx.graph.io", "onnxruntime.InferenceSession"),
        ("gpusq_onnx.pipeline.manager", "torch.nn"),
        ("gpusq_onnx.sparsity.patterns", "onnx.numpy_helper"),
    ],
)
def test_a_back_running_arrow_is_seen(source: str, target: str):
    assert len(violations([Import(source, target)])) == 1


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("gpusq_onnx.passes.prune", "gpusq_onnx.graph.sites.Site"),
        ("gpusq_onnx.runtime.compare.outputs", "gpusq_onnx.data.source.Source"),
        ("gpusq_onnx.runtime.compare.outputs", "gpusq_onnx.progress.Progress"),
        ("gpusq_onnx.graph.io", "onnx_graphsurgeon"),
        ("gpusq_onnx.sparsity.patterns", "numpy.typing.NDArray"),
        ("gpusq_onnx.cli.app", "gpusq_onnx.__version__"),
        ("gpusq_onnx.cli.apply", "gpusq_onnx.workflows.apply.compress"),
        ("gpusq_onnx", "gpusq_onnx.workflows.apply.compress"),
    ],
)
def test_an_arrow_that_runs_down_is_let_through(source: str, target: str):
    assert violations([Import(source, target)]) == []


def test_mutual_imports_are_seen():
    back_and_forth = [
        Import("gpusq_onnx.data.source", "gpusq_onnx.runtime.ort.Session"),
        Import("gpusq_onnx.runtime.compare.outputs", "gpusq_onnx.data.source.Source"),
    ]
    assert cycles(back_and_forth) == ["data ↔ runtime"]
    assert area("gpusq_onnx.data.source.Source") == "data"


def test_no_file_is_past_350_lines():
    folders = ("gpusq_onnx", "passes", "tools", "tests", "examples")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > 350} == {}


def test_every_module_says_what_it_is():
    texts = {name: path.read_text(encoding="utf-8") for name, path in MODULES}
    assert [name for name, text in texts.items() if text and not ast.get_docstring(ast.parse(text))] == []


def test_no_two_test_modules_share_a_name():
    """pytest imports them, and the helpers beside them, by their names alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
