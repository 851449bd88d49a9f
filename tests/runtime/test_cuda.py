"""The driver's calls through ctypes, against a stub of the driver in C: arguments and results meet a real ABI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpusq_onnx.errors import EnvironmentLacking
from gpusq_onnx.runtime.tensorrt import cuda

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_memory_times_and_graphs(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, HERE / "driver_stub.c"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "cuda_on_stub.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_driver_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda.ctypes, "CDLL", missing)
    with pytest.raises(EnvironmentLacking, match="no NVIDIA driver"):
        cuda.Device()
