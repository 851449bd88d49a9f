"""CUDA through the driver alone: memory, events and graphs by ctypes, for what has no torch beside it.

    Device     the primary context of device 0, which the CUDA runtime inside TensorRT shares
    Stream     work in order; `elapsed` times a function by events; `record` makes a graph of what it enqueues

Every call's result is checked. Source: CUDA driver API (cuda.h), symbols with the `_v2` suffix where that is the
current ABI. Limits: one device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import EnvironmentLacking

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: libraries may allocate while a graph is recorded
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class Device:
    """Device 0 and its primary context, current in this thread; a context manager that frees what it allocated.

    Raises:
        EnvironmentLacking: no driver or no device.
    """

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise EnvironmentLacking(
                "there is no NVIDIA driver here", found=str(error), hint="install it, on a machine with a GPU"
            ) from error
        self._memory: list[ctypes.c_uint64] = []
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if self._cuda.cuInit(0) or self._cuda.cuDeviceGet(ctypes.byref(device), 0):
            raise EnvironmentLacking("CUDA finds no GPU here", hint="run on a machine with an NVIDIA GPU")
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *given: Any) -> None:
        """One function of the driver. Raises RuntimeError with its name and CUDA's own words."""
        result = getattr(self._cuda, name)(*given)
        if result:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(result, ctypes.byref(text))
            raise RuntimeError(f"{name}: CUDA error {result}: {(text.value or b'').decode()}")

    def allocate(self, size: int) -> int:
        """An address of `size` bytes of device memory."""
        at = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(max(1, size)))
        self._memory.append(at)
        return at.value

    def put(self, values: NDArray[Any]) -> int:
        """The address of a copy of `values` in device memory."""
        values = np.ascontiguousarray(values)
        at = self.allocate(values.nbytes)
        self.call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(at),
            ctypes.c_void_p(values.ctypes.data),
            ctypes.c_size_t(values.nbytes),
        )
        return at

    def get(self, at: int, like: NDArray[Any]) -> NDArray[Any]:
        """What lies at an address, as an array of the shape and type of `like`."""
        found = np.empty_like(like)
        self.call(
            "cuMemcpyDtoH_v2", ctypes.c_void_p(found.ctypes.data), ctypes.c_uint64(at), ctypes.c_size_t(found.nbytes)
        )
        return found

    def close(self) -> None:
        """Free all memory."""
        while self._memory:
            self.call("cuMemFree_v2", self._memory.pop())

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Stream:
    """A stream of a device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream, self._graph = ctypes.c_void_p(), ctypes.c_void_p()
        device.call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)
        self._began, self._ended = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (self._began, self._ended):
            device.call("cuEventCreate", ctypes.byref(event), 0)

    @property
    def handle(self) -> int:
        """What libraries take as a stream."""
        return self._stream.value or 0

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""
        self._device.call("cuStreamSynchronize", self._stream)

    def elapsed(self, enqueue: Callable[[], object], times: int) -> float:
        """Seconds of device time between the first and the last of `times` calls of `enqueue`."""
        call = self._device.call
        call("cuEventRecord", self._began, self._stream)
        for _ in range(times):
            enqueue()
        call("cuEventRecord", self._ended, self._stream)
        call("cuEventSynchronize", self._ended)
        milliseconds = ctypes.c_float()
        call("cuEventElapsedTime", ctypes.byref(milliseconds), self._began, self._ended)
        return milliseconds.value / 1e3

    def record(self, enqueue: Callable[[], object]) -> Callable[[], None]:
        """What `enqueue` puts on this stream, as a CUDA graph: a function that launches it.

        Raises:
            RuntimeError: something in it cannot be recorded; the stream can be used as before.
        """
        call, recorded = self._device.call, ctypes.c_void_p()
        call("cuStreamBeginCapture_v2", self._stream, _RELAXED)
        try:
            enqueue()
        finally:
            call("cuStreamEndCapture", self._stream, ctypes.byref(recorded))
        call("cuGraphInstantiateWithFlags", ctypes.byref(self._graph), recorded, ctypes.c_ulonglong(0))
        call("cuGraphDestroy", recorded)
        return lambda: call("cuGraphLaunch", self._graph, self._stream)

    def close(self) -> None:
        """Destroy graph, events and stream."""
        call = self._device.call
        if self._graph:
            call("cuGraphExecDestroy", self._graph)
        for event in (self._began, self._ended):
            call("cuEventDestroy_v2", event)
        call("cuStreamDestroy_v2", self._stream)
