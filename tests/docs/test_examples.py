"""Every example runs, as a user starts it; the README's and docs/python.md's Python blocks, too."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import README, ROOT, blocks

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_runs(script: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom_and_holds_no_outputs(notebook: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(notebook.parent)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    seen: list[str] = []
    scope: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            seen += _run("".join(cell["source"]), scope)
    assert any("<table>" in shown for shown in seen)


def _run(source: str, scope: dict[str, object]) -> list[str]:
    """Execute a cell; what a notebook would show of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), scope)
    if last is None:
        return []
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), scope)
    draw = getattr(value, "_repr_html_", None)
    return [draw() if draw else repr(value)]


@pytest.mark.long
@pytest.mark.parametrize("page", [README, ROOT / "docs" / "python.md"], ids=lambda path: path.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assets = ROOT / "tests" / "assets"
    Path("model.onnx").write_bytes((assets / "digits_vit.onnx").read_bytes())
    Path("val.npz").write_bytes((assets / "digits_test.npz").read_bytes())
    Path("train.npz").write_bytes((assets / "digits_train.npz").read_bytes())
    found = [block.text for block in blocks(page) if block.language == "python"]
    assert found
    scope: dict[str, object] = {}
    for text in found:
        text = text.replace('"images/"', '"train.npz"').replace('"val/"', '"val.npz"').replace('"classes.txt"', "None")
        exec(compile(text, page.name, "exec"), scope)
