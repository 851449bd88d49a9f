"""`import tensorrt` for a machine with no GPU: TensorRT's Python bindings over TensorRT-RTX's libraries.

The harness copies this file next to the two wheels' packages; under its plain name `tensorrt` it loads everything. The
libraries are loaded by path before the bindings look for them by soname, so no LD_LIBRARY_PATH is needed. They stay
out of the global symbol scope (ctypes' default): the bindings must meet the shims' factories before TensorRT-RTX's.

The two products' tables of virtual functions agree for what parsing and building need. They differ in a few members,
which read wrong or crash; those are taken away or answered here.
"""

import ctypes
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def load(site: Path) -> Any:
    """The bindings' module, from the folder `site` that `harness.prepare` made, with its libraries loaded."""
    rtx = site / "onnxruntime_ep_nv_tensorrt_rtx"
    for pattern in ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*"):
        library = next(rtx.glob(pattern), None)
        if library is None:
            raise ImportError(f"{rtx / pattern} is missing: remove {site.parent} and set the harness up again")
        ctypes.CDLL(str(library))
    for shim in ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"):
        ctypes.CDLL(str(site.parent / "lib" / shim))
    trt: Any = import_module("tensorrt_bindings")
    del trt.INetworkDefinition.get_flag
    trt.ITensor.is_shape_tensor = property(lambda tensor: False)
    trt.ITensor.is_execution_tensor = property(lambda tensor: True)
    trt.LIBRARY = "TensorRT-RTX 1.7 (CPU)"
    return trt


if __name__ == "tensorrt":
    sys.modules[__name__] = load(Path(__file__).resolve().parent)
