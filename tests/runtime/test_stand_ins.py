"""What needs a GPU or TensorRT, on stand-ins for both: which calls are made in which order, and what errors become.

The stand-ins keep what they are given and say what a device would; figures and exactness are the GPU tests' matter.
"""

import contextlib
import ctypes
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from runtime_models import linear

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.runtime.bench import ort as ort_bench
from gpusq_onnx.runtime.bench import tensorrt as trt_bench
from gpusq_onnx.runtime.bench.backend import Variant
from gpusq_onnx.runtime.compare import engine as compared
from gpusq_onnx.runtime.kernels import attention, graphs
from gpusq_onnx.runtime.tensorrt import gpu

GPU = {"name": "Stand-in", "capability": "9.0", "driver": "13.0"}


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class FakeEngine:
    """An engine x [N, 16] -> y [N, 8]; its context doubles nothing and remembers all."""

    num_io_tensors, num_optimization_profiles = 2, 1

    def __init__(self, runs: bool) -> None:
        self.runs, self.runs_done = runs, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def create_execution_context(self) -> "FakeEngine":
        return self

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (-1, 16 if name == "x" else 8)

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        return [(1, 16), (2, 16), (4, 16)]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = tuple(shape)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_max_output_size(self, name: str) -> int:
        return 64

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7 and self.addresses.keys() == {"x", "y"} and self.shapes == {"x": (2, 16)}
        self.runs_done += 1
        return self.runs


class FakeDevice:
    closed = False

    def put(self, array: np.ndarray) -> int:
        return array.nbytes

    def allocate(self, size: int) -> int:
        return size

    def close(self) -> None:
        self.closed = True


class FakeStream:
    """Counts a millisecond a launch; `records` says whether a graph can be made."""

    handle, records = 7, True

    def __init__(self, device: FakeDevice) -> None:
        self.device, self.open = device, True

    def synchronize(self) -> None:
        assert self.open

    def record(self, run: Any) -> Any:
        if not self.records:
            raise RuntimeError("it computes shapes on the host")
        return run

    def elapsed(self, launch: Any, times: int) -> float:
        for _ in range(times):
            launch()
        return times / 1000

    def close(self) -> None:
        self.open = False


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A `tensorrt` to import, a builder that writes a plan, a device, and the engine that a plan becomes."""
    made = SimpleNamespace(engine=FakeEngine(runs=True), asked=[])
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: made.engine)
    module = SimpleNamespace(
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None}),
        Runtime=lambda logger: runtime,
        TensorIOMode=Mode,
        nptype=np.dtype,
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)

    def build(path: Path, digest: str, plan: Path, options: Any, library: Any, cache: Path | None = None) -> Any:
        made.asked.append(options)
        plan.write_bytes(b"a plan")
        return SimpleNamespace(require=lambda path: None)

    library = SimpleNamespace(name="TensorRT 11", version="11.0", gpu=GPU)
    for place in (trt_bench, compared):
        monkeypatch.setattr(place, "build_engine", build)
        monkeypatch.setattr(place, "find_library", lambda: library)
    monkeypatch.setattr(trt_bench, "Device", FakeDevice)
    monkeypatch.setattr(trt_bench, "Stream", FakeStream)
    return made


def test_tensorrt_is_warmed_up_recorded_and_timed(tensorrt: SimpleNamespace, tmp_path: Path) -> None:
    backend = trt_bench.TrtBackend()
    assert backend.require() == {"TensorRT": "11.0", "CUDA driver": "13.0"}
    runner = backend.open(Variant(linear(tmp_path / "m.onnx"), "FP32", sparse=True), 2)
    assert tensorrt.engine.runs_done == 3
    assert runner.measure(5) == 0.005 and tensorrt.engine.runs_done == 8
    assert (tensorrt.asked[0].sparse, tensorrt.asked[0].tf32) == (True, False)
    assert tensorrt.engine.addresses == {"x": 2 * 16 * 4, "y": 64}
    runner.close()
    assert runner._device.closed and not runner._stream.open
    assert (backend.notes(), backend.choices()) == ([], [])


def test_an_engine_that_cannot_be_recorded_is_launched_and_noted(
    tensorrt: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStream, "records", False)
    backend = trt_bench.TrtBackend()
    assert backend.open(Variant(linear(tmp_path / "m.onnx")), 2).measure(2) == 0.002
    assert backend.notes() == ["m.onnx: no CUDA graph: it computes shapes on the host"]


@pytest.mark.parametrize(
    ("engine", "error"), [(None, EnvironmentLacking), (FakeEngine(runs=False), UnsupportedModelError)]
)
def test_an_engine_that_does_not_load_or_run_is_an_error(
    engine: FakeEngine | None, error: type[Exception], tensorrt: SimpleNamespace, tmp_path: Path
) -> None:
    tensorrt.engine = engine
    with pytest.raises(error, match="TensorRT cannot"):
        trt_bench.TrtBackend().open(Variant(linear(tmp_path / "m.onnx")), 2)


def test_without_tensorrt_a_benchmark_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise EnvironmentLacking("TensorRT is not installed", found="No module named 'tensorrt'")

    monkeypatch.setattr(trt_bench, "find_library", missing)
    with pytest.raises(EnvironmentLacking, match="TensorRT is not installed") as caught:
        trt_bench.TrtBackend().require()
    assert "take another --backend" in str(caught.value.details["next"])


class FakeRunner:
    """Polygraphy's TrtRunner: y is the sum of x, and a batch of nine is refused as it refuses."""

    def __init__(self, engine: FakeEngine, optimization_profile: int) -> None:
        assert optimization_profile == 0

    def __enter__(self) -> "FakeRunner":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from polygraphy.exception import PolygraphyException

        if len(feed["x"]) == 9:
            raise PolygraphyException("a batch of 9 is outside of the profile")
        return {"y": feed["x"].sum(1)}


def test_an_engine_is_one_side_of_a_comparison(
    tensorrt: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import polygraphy.backend.trt as polygraphy_trt

    monkeypatch.setattr(polygraphy_trt, "engine_from_bytes", lambda plan: tensorrt.engine)
    monkeypatch.setattr(polygraphy_trt, "TrtRunner", FakeRunner)
    engine = compared.built(linear(tmp_path / "m.onnx"), "m.onnx", 4)
    assert [(info.name, info.dtype, info.shape) for info in engine.inputs()] == [("x", np.float32, (None, 16))]
    assert [info.name for info in engine.outputs()] == ["y"]
    assert (engine.fixed_batch, engine.max_batch) == (None, 4)
    with engine.opened() as infer:
        assert infer({"x": np.ones((2, 16), np.float32)})["y"].tolist() == [16, 16]
        with pytest.raises(UnsupportedDataError, match="does not fit the engine"):
            infer({"x": np.ones((9, 16), np.float32)})


def test_an_engine_of_another_tensorrt_says_to_build_it_again(
    tensorrt: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import polygraphy.backend.trt as polygraphy_trt
    from polygraphy.exception import PolygraphyException

    def refused(plan: bytes) -> None:
        raise PolygraphyException("version tag does not match")

    monkeypatch.setattr(polygraphy_trt, "engine_from_bytes", refused)
    (tmp_path / "m.plan").write_bytes(b"a plan")
    with pytest.raises(EnvironmentLacking, match="cannot load the engine") as caught:
        compared.Engine.load(tmp_path / "m.plan")
    assert "version tag" in str(caught.value.details["found"])


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
        self._hold_outputs(session, device)

    return bound
