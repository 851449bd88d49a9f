"""TensorRT and its device on stand-ins: which calls are made in which order, and what errors become.

The stand-ins keep what they are given and say what a device would; figures and exactness are the GPU tests' matter.
"""

import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runtime_models import linear

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.runtime.bench import tensorrt as trt_bench
from gpusq_onnx.runtime.bench.backend import Variant
from gpusq_onnx.runtime.compare import engine as compared

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
