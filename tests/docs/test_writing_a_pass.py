"""The plug-in of docs/writing-a-pass.md, installed and run as it is printed there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from pages import ROOT, blocks, shown

pytestmark = pytest.mark.long

PAGE = ROOT / "docs" / "writing-a-pass.md"
MODEL = ROOT / "tests" / "assets" / "digits_vit.onnx"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `pip install .` of the page's two files puts them."""
    source, target = tmp_path_factory.mktemp("zero-small"), tmp_path_factory.mktemp("site")
    for block in blocks(PAGE):
        if block.title:
            (source / block.title).write_text(block.text)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", target, source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def gpusq(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, site)))
    command = [sys.executable, "-m", "gpusq_onnx", *words]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )


def test_the_table_shows_it_with_its_options(site: Path, tmp_path: Path):
    listed = json.loads(gpusq(site, tmp_path, "passes", "show", "zero-small", "--json", "-").stdout)
    assert listed["distribution"] == "zero-small"
    assert [option["option"] for option in listed["options"]] == ["share", "only", "skip"]


def test_the_pages_commands_run_and_the_fact_holds_to_the_end(site: Path, tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(MODEL.read_bytes())
    for words in shown(PAGE):
        if "--data" in words:  # the tests' images, as an array
            words[words.index("--data") + 1] = str(MODEL.with_name("digits_train.npz"))
        done = gpusq(site, tmp_path, *words)
        assert done.returncode == 0, done.stderr
    before, after = (_zeros(tmp_path / name) for name in ("model.onnx", "small.onnx"))
    assert after > before + 100


def test_a_selector_that_matches_nothing_exits_3(site: Path, tmp_path: Path):
    refused = gpusq(site, tmp_path, "plan", "--passes", "zero-small{only=[fc9]}", str(MODEL))
    assert refused.returncode == 3
    assert "matches no weight" in refused.stderr


def test_its_source_passes_our_linter(site: Path):
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("needs the `dev` extra: ruff")
    command = [
        str(ruff),
        "check",
        "--isolated",
        "--line-length",
        "120",
        "--select",
        "E,W,F,I,UP,B",
        site / "zero_small.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _zeros(path: Path) -> int:
    arrays = (onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer)
    return sum(int((array == 0).sum()) for array in arrays if array.ndim == 2)
