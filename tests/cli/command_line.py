"""Running the command line in this process, as fast as tests need it."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from gpusq_onnx.cli import main

ROOT = Path(__file__).parents[2]
# Code for the start of a process: what a script runs in its background starts deaf to SIGINT, what nohup runs to
# SIGHUP, and so do their children.
HEARS_SIGNALS = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
)
ASSETS = ROOT / "tests" / "assets"
MODEL = ASSETS / "digits_vit.onnx"
IMAGES = ASSETS / "digits_train.npz"
LABELLED = ASSETS / "digits_test.npz"


@dataclass(frozen=True)
class Outcome:
    """What one command left."""

    code: int
    out: str
    err: str


def call(*words: str | Path) -> Outcome:
    """`main` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Outcome(code, out.getvalue(), err.getvalue())


def fresh_model(tmp_path: Path) -> Path:
    """A copy of the embedded digits model, alone in a folder, so that anything left is seen."""
    folder = tmp_path / "work"
    folder.mkdir()
    copy = folder / "model.onnx"
    copy.write_bytes(MODEL.read_bytes())
    return copy
