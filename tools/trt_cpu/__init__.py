"""A real TensorRT-family ONNX parser and engine builder for machines with no GPU, from public wheels alone.

TensorRT's own libraries refuse to start without a GPU; TensorRT-RTX's do not, share TensorRT's ONNX parser and type
rules, and come in a public wheel. TensorRT's Python bindings are put over them by a small compiled shim (`shim.c`)
and a `tensorrt` module that loads everything in the right order (`tensorrt.py`).

What it proves: that the ONNX parser accepts the graph, that its types are legal under strong typing, that the build
code runs. What it cannot: run engines, show sparsity decisions, or say anything about speed.

    python -m gpusq_onnx.runtime.trt_cpu FOLDER      # once: about 150 MB to download, 310 MB on disk
    PYTHONPATH=$(python -m gpusq_onnx.runtime.trt_cpu FOLDER) polygraphy convert model.onnx -o engine --strongly-typed

Limits: Linux on x86_64, a C compiler, pip. TensorRT-RTX has no W8A8 kernels: never time anything with it.
"""

from gpusq_onnx.runtime.trt_cpu.harness import prepare, ready

__all__ = ["prepare", "ready"]
