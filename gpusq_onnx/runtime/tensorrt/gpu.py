"""Which GPU an engine is built for: its name and compute capability, from the driver alone.

Read through `libcuda` (CUDA driver API: cuInit, cuDeviceGetName, cuDeviceGetAttribute), which is there wherever a GPU
can be used and needs no CUDA package. Device 0 is the one that TensorRT takes; CUDA_VISIBLE_DEVICES chooses it.
"""

import ctypes
from typing import TypedDict

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


class Gpu(TypedDict):
    """A GPU: "NVIDIA H100 80GB HBM3", "9.0", and the driver's CUDA version, "13.0"."""

    name: str
    capability: str
    driver: str


def current() -> Gpu | None:
    """Device 0; None without a driver or a device."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, version = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDriverGetVersion(ctypes.byref(version)):
        return None
    name = ctypes.create_string_buffer(256)
    if cuda.cuDeviceGetName(name, len(name), device):
        return None
    found = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        found.append(value.value)
    return {
        "name": name.value.decode("utf-8", "replace"),
        "capability": f"{found[0]}.{found[1]}",
        "driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }
