"""The driver, CUDA graphs and onnxruntime's CUDA provider on stand-ins: what is called, and what a refusal becomes.

The stand-ins say what a device would; figures and exactness are the GPU tests' matter.
"""

import contextlib
import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from runtime_models import linear

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.runtime.bench import ort as ort_bench
from gpusq_onnx.runtime.bench.backend import Variant
from gpusq_onnx.runtime.kernels import attention, graphs
from gpusq_onnx.runtime.tensorrt import gpu


class Driver:
    """libcuda as `gpu.current` calls it; the function that is named fails."""

    def __init__(self, failing: str) -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        def function(*given: Any) -> int:
            if name == self.failing:
                return 100
            if name == "cuDeviceGetName":
                given[0].value = b"Stand-in"
            elif name == "cuDriverGetVersion":
                given[0]._obj.value = 12080
            elif name == "cuDeviceGetAttribute":
                given[0]._obj.value = {75: 8, 76: 6}[given[1]]
            return 0

        return function


@pytest.mark.parametrize(
    "failing", ["", "cuInit", "cuDeviceGet", "cuDriverGetVersion", "cuDeviceGetName", "cuDeviceGetAttribute"]
)
def test_the_gpu_is_what_the_driver_says(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": lambda name: Driver(failing)}))
    found = {"name": "Stand-in", "capability": "8.6", "driver": "12.8"}
    assert gpu.current() == (None if failing else found)


class FakeCuda:
    """torch.cuda as `CudaRunner` uses it: the clock goes on a millisecond a call of `run` or replay."""

    def __init__(self, refuses: bool) -> None:
        self.refuses, self.now, self.log = refuses, 0.0, []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda, stream = self, SimpleNamespace(wait_stream=lambda other: None)

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = cuda.now

            def synchronize(self) -> None:
                cuda.log.append("waited")

            def elapsed_time(self, ended: "Event") -> float:
                return ended.at - self.at

        def graph(made: Any) -> Any:
            if cuda.refuses:
                raise RuntimeError("not permitted when stream is capturing\nmore")
            return contextlib.nullcontext()

        known = {
            "device": lambda device: contextlib.nullcontext(),
            "Stream": lambda device: stream,
            "current_stream": lambda device: stream,
            "stream": lambda side: contextlib.nullcontext(),
            "synchronize": lambda device: None,
            "CUDAGraph": lambda: SimpleNamespace(replay=self.run),
            "graph": graph,
            "Event": Event,
            "empty_cache": lambda: cuda.log.append("emptied"),
        }
        for name, value in known.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def run(self) -> None:
        self.now += 1.0


@pytest.mark.parametrize("refuses", [False, True])
def test_a_function_is_recorded_or_run_as_it_is(refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(refuses)
    cuda.install(monkeypatch)
    runner = graphs.CudaRunner(cuda.run, torch.device("cuda"))
    assert (runner.recorded, runner.reason) == (not refuses, "not permitted when stream is capturing" * refuses)
    assert cuda.now == graphs.WARM + (not refuses)
    assert runner.measure(5) == pytest.approx(0.005)
    runner.close()
    assert cuda.log == ["waited", "emptied"]
    with pytest.raises(RuntimeError, match="closed"):
        runner.measure(1)


def test_attention_without_a_gpu_is_the_formula() -> None:
    draw = np.random.default_rng(0)
    q, k, v = (torch.from_numpy(draw.integers(-127, 128, (1, 2, 5, 16), np.int8)) for _ in range(3))
    scales = torch.tensor([0.02, 0.03, 1 / 127, 0.05])
    scores = torch.softmax((q.double() * 0.02) @ (k.double() * 0.03).transpose(2, 3), 3)
    wanted = torch.round(scores * 127) / 127 @ (v.double() * 0.05)
    found = attention.attention(q, k, v, scales, None, torch.float32)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    codes = attention.attention(q, k, v, scales, torch.tensor(0.1), torch.float32)
    assert codes.dtype == torch.int8
    assert int((codes - torch.round(wanted / 0.1).clamp(-128, 127)).abs().max()) <= 1
    assert attention.why_not(197, 64) is None
    assert "keys" in str(attention.why_not(513, 64)) and "head size of 48" in str(attention.why_not(197, 48))


@pytest.mark.parametrize("graph", [True, False])
def test_onnxruntime_s_cuda_way_records_a_graph_or_says_why_not(
    graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions are of the CPU; what is asked of the provider, and what follows its refusal, is the CUDA way."""
    asked, real = [], ort_bench.Session

    def session(path: Path, *, provider: str, provider_options: dict[str, str], exact_qdq: bool = False) -> Any:
        asked.append((provider, provider_options, exact_qdq))
        if not graph and "enable_cuda_graph" in provider_options:
            raise UnsupportedModelError("onnxruntime cannot run the model", found="a graph with control flow")
        return real(path)

    monkeypatch.setattr(ort_bench, "Session", session)
    monkeypatch.setattr(ort_bench._Bound, "__init__", _on_the_cpu(ort_bench._Bound.__init__))
    backend = ort_bench.OrtBackend(gpu=True)
    runner = backend.open(Variant(linear(tmp_path / "m.onnx"), "FP32"), 2)
    assert runner.measure(2) > 0
    runner.close()
    assert {provider for provider, _, _ in asked} == {ort_bench.CUDA}
    assert all(options["use_tf32"] == "0" for _, options, _ in asked)
    assert ("enable_cuda_graph" in asked[-1][1]) is graph
    assert any("no CUDA graph: a graph with control flow" in note for note in backend.notes()) is not graph


def _on_the_cpu(real: Any) -> Any:
    """`_Bound` as for a GPU, its memory on the CPU."""

    def bound(self: Any, session: Any, batch: int, device: str) -> None:
        assert device == "cuda"
        real(self, session, batch, "cpu")
        self._hold_outputs()

    return bound
