"""Run with the stub as libcuda.so.1: memory, times, graphs, errors, and that all is freed."""

import ctypes

import numpy as np
import pytest

from gpusq_onnx.runtime.tensorrt.cuda import Device, Stream


def main() -> None:
    stub = ctypes.CDLL("libcuda.so.1")
    with Device() as device:
        values = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
        np.testing.assert_array_equal(device.get(device.put(values), values), values)
        stream = Stream(device)
        assert stream.handle == 0x5EED
        stream.synchronize()
        assert round(stream.elapsed(stub.work, 5), 6) == 0.005

        def twice() -> None:
            stub.work()
            stub.work()

        launch = stream.record(twice)
        assert round(stream.elapsed(launch, 3), 6) == 0.006
        stub.break_capture(1)
        with pytest.raises(RuntimeError, match="cuStreamEndCapture: CUDA error 901: stubbed out"):
            stream.record(twice)
        assert round(stream.elapsed(launch, 1), 6) == 0.002
        stream.close()
    assert stub.allocations() == 0, stub.allocations()


if __name__ == "__main__":
    main()
