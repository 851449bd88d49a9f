"""`import tensorrt` for a machine with no GPU: TensorRT's Python bindings over TensorRT-RTX's libraries.

The harness copies this file next to the two wheels' packages; the folder on sys.path is then enough. The libraries
are loaded here, by path, before the bindings look for them by soname, so no LD_LIBRARY_PATH is needed. TensorRT-RTX's
are kept out of the global symbol scope (ctypes' default): the bindings must meet the shims' factories first.

The two products' tables of virtual functions agree for what parsing and building need. They differ in a few members,
which read wrong or crash; those are taken away or answered here.
"""

import ctypes
import sys
from pathlib import Path

_site = Path(__file__).resolve().parent
_rtx = _site / "onnxruntime_ep_nv_tensorrt_rtx"
for _pattern in ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*"):
    _library = next(iter(sorted(_rtx.glob(_pattern))), None)
    if _library is None:
        raise ImportError(f"{_rtx / _pattern} is missing: set the harness up again")
    ctypes.CDLL(str(_library))
for _shim in ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"):
    ctypes.CDLL(str(_site.parent / "lib" / _shim))

import tensorrt_bindings as trt  # noqa: E402 (after its libraries)

del trt.INetworkDefinition.get_flag
trt.ITensor.is_shape_tensor = property(lambda tensor: False)
trt.ITensor.is_execution_tensor = property(lambda tensor: True)
trt.LIBRARY = "TensorRT-RTX 1.7 (CPU)"
sys.modules[__name__] = trt
