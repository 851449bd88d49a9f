"""The cache of exports: a file that is there is used, one that is not is made by the zoo's script."""

import sys
from pathlib import Path

import pytest

from tools.zoo.exports import Zoo

SCRIPT = (
    "import pathlib, sys; (pathlib.Path(sys.argv[3]) / '_'.join(sys.argv[1:3])).with_suffix('.onnx').write_text('made')"
)


def _zoo(folder: Path) -> Zoo:
    """A zoo whose environment is this interpreter, and whose script writes a text."""
    script, venv = folder / "zoo.py", folder / "venv"
    script.write_text(SCRIPT)
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    (venv / ".installed").touch()
    return Zoo(script, folder / "cache", venv)


def test_an_export_is_made_once(tmp_path: Path) -> None:
    zoo = _zoo(tmp_path)
    path = zoo.exported("deit", "legacy17")
    assert path == tmp_path / "cache" / "deit_legacy17.onnx"
    assert path.read_text() == "made"
    path.write_text("kept")
    assert zoo.exported("deit", "legacy17").read_text() == "kept"


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo.py", tmp_path / "cache", tmp_path / "venv")
    with pytest.raises(FileNotFoundError, match=r"deit_legacy17\.onnx is not there, and neither is .*zoo\.py"):
        zoo.exported("deit", "legacy17")
    assert not (tmp_path / "cache").exists()
