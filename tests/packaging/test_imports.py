"""What importing costs and what it must never bring in."""

import subprocess
import sys

import pytest
from arrows import ROOT, modules

# What only those verbs and passes reach that run torch, each importing it late.
TORCHS_OWN = ("gpusq_onnx.torchgraph", "gpusq_onnx.learn", "gpusq_onnx.runtime.kernels")
# These run as scripts inside the parser's own process, where TensorRT is the point.
OWN_PROCESS = {"gpusq_onnx.__main__", "gpusq_onnx.runtime.trt_cpu.__main__", "gpusq_onnx.runtime.trt_cpu.tensorrt"}


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    program = f"{code}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_brings_nothing_heavy():
    heavy = {"torch", "tensorrt", "onnx", "onnxruntime", "onnx_graphsurgeon", "polygraphy", "numpy", "typer", "rich"}
    assert loaded_after("import gpusq_onnx, gpusq_onnx.errors") & heavy == set()


def test_every_public_name_is_there_and_loads_no_torch():
    code = "import gpusq_onnx\nfound = [getattr(gpusq_onnx, name) for name in gpusq_onnx.__all__]"
    assert loaded_after(code) & {"torch", "tensorrt", "typer", "rich"} == set()


@pytest.mark.long
def test_importing_every_module_of_the_core_brings_neither_torch_nor_tensorrt():
    names = [name for name, _ in modules() if name not in OWN_PROCESS and not name.startswith(TORCHS_OWN)]
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert "numpy" in loaded
    assert loaded & {"torch", "tensorrt"} == set()


@pytest.mark.parametrize("area", ["sparsity", "quant", "tasks"])
def test_the_maths_needs_numpy_alone(area: str):
    names = [name for name, _ in modules() if name.startswith(f"gpusq_onnx.{area}")]
    heavy = {"torch", "tensorrt", "onnx", "onnxruntime", "onnx_graphsurgeon", "polygraphy", "pydantic", "typer", "rich"}
    assert loaded_after("\n".join(f"import {name}" for name in names)) & heavy == set()
