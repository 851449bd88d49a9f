"""An onnxruntime that goes wrong as a test wants it, for the processes that the tool starts; this one's stays whole.

A child gets this process's import path. The package that comes first there imports the real onnxruntime and gives it
another InferenceSession, which runs the test's code at three moments: `load(data, optimised)` with the bytes of the
model file, and `result(values, data, optimised)` with what a run gave. `die()` ends the process by SIGSEGV.
"""

from pathlib import Path

import onnxruntime
import pytest

_STUB = """
import os, signal, sys
from pathlib import Path

here = str(Path(__file__).parents[1])
sys.path.remove(here)
del sys.modules["onnxruntime"]
import onnxruntime as real

Whole = real.InferenceSession


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


def load(data, optimised):
    pass


def result(values, data, optimised):
    return values


{code}


class Broken(Whole):
    def __init__(self, path, sess_options=None, **more):
        level = sess_options.graph_optimization_level
        self._optimised = level != real.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._data = Path(path).read_bytes()
        load(self._data, self._optimised)
        super().__init__(path, sess_options=sess_options, **more)

    def run(self, *args, **more):
        return result(super().run(*args, **more), self._data, self._optimised)


real.InferenceSession = Broken
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """From now on the tool's processes run `code` inside their onnxruntime."""
    assert onnxruntime.InferenceSession.__name__ == "InferenceSession"  # this process has the real one already
    package = folder / "broken" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_STUB.format(code=code))
    monkeypatch.syspath_prepend(package.parent)
