"""TensorRT as a benchmark's backend: an engine a model and batch size, built for that batch, replayed as a CUDA graph.

Engines are built by `builder` with its cache: strongly typed, sparse kernels allowed for given 2:4 models and forbidden
for their dense baselines, TF32 on but for the row FP32. Inputs and outputs lie in device memory; events time the
replays. An engine that cannot be recorded (it computes shapes on the host) is enqueued again and again, and noted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedModelError
from gpusq_onnx.graph.io import file_digest, load
from gpusq_onnx.runtime.bench.backend import GPU_BASELINES, Baseline, Variant, random_feed
from gpusq_onnx.runtime.bench.timing import Runner
from gpusq_onnx.runtime.ort import TensorInfo
from gpusq_onnx.runtime.tensorrt.cuda import Device, Stream
from gpusq_onnx.runtime.tensorrt.engine import build_engine
from gpusq_onnx.runtime.tensorrt.library import Library, find_library
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import Bounds, make_profiles
from gpusq_onnx.scratch import Scratch


class TrtBackend:
    """TensorRT on device 0; see `backend.Backend`. `cache`: the folder of engines and timings."""

    name, gpu = "tensorrt", True

    def __init__(self, cache: Path | None = None) -> None:
        self.baselines: Sequence[Baseline] = GPU_BASELINES
        self._cache = cache
        self._library: Library | None = None
        self._notes: list[str] = []

    def require(self) -> dict[str, str]:
        """TensorRT's version. Raises EnvironmentLacking without TensorRT 10 or newer, or without a GPU."""
        try:
            library = self._found()
        except EnvironmentLacking as error:
            hint = "pip install 'gpusq-onnx[tensorrt]' on a machine with an NVIDIA GPU, or take another --backend"
            raise EnvironmentLacking(error.what, found=error.details["found"], hint=hint) from error
        assert library.gpu is not None
        return {"TensorRT": library.version, "CUDA driver": library.gpu["driver"]}

    def notes(self) -> list[str]:
        """Which engines run without a CUDA graph, and why."""
        return self._notes

    def choices(self) -> list[str]:
        """None: TensorRT chooses; `gpusq-onnx build` shows what."""
        return []

    def open(self, variant: Variant, batch: int) -> Runner:
        """See `backend.Backend.open`; builds the engine, which takes minutes the first time."""
        model = load(variant.path)
        profiles = make_profiles(model.inputs(), [Bounds((batch,), (batch,), (batch,))])
        inputs = [TensorInfo(spec.name, spec.dtype, spec.shape) for spec in model.inputs()]
        feed = random_feed(inputs, batch, str(variant.path))
        options = BuildOptions(profiles, sparse=variant.sparse, tf32=variant.precision != "FP32")
        with Scratch() as scratch:
            plan = scratch / "model.plan"
            digest = file_digest(variant.path, sorted(model.data_files))
            built = build_engine(variant.path, digest, plan, options, self._found(), cache=self._cache)
            built.require(variant.path)
            return _Engine(plan.read_bytes(), variant.path.name, feed, self._notes)

    def _found(self) -> Library:
        if self._library is None:
            self._library = find_library()
        return self._library


class _Engine:
    """An engine with its inputs in device memory."""

    def __init__(self, plan: bytes, name: str, feed: dict[str, Any], notes: list[str]) -> None:
        import tensorrt as trt

        self._device = Device()
        self._stream = Stream(self._device)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EnvironmentLacking("TensorRT cannot load the engine that it has built", where=name)
        self._engine, self._context = engine, engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for tensor in names:
            if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT:
                self._context.set_input_shape(tensor, feed[tensor].shape)
                self._context.set_tensor_address(tensor, self._device.put(feed[tensor]))
        for tensor in names:
            if engine.get_tensor_mode(tensor) == trt.TensorIOMode.OUTPUT:
                size = self._context.get_max_output_size(tensor)
                self._context.set_tensor_address(tensor, self._device.allocate(size))
        self._name = name
        self._launch: Callable[[], None] = self._enqueue
        for _ in range(3):
            self._enqueue()
        self._stream.synchronize()
        try:
            self._launch = self._stream.record(self._enqueue)
        except RuntimeError as error:
            notes.append(f"{name}: no CUDA graph: {error}")

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise UnsupportedModelError("TensorRT cannot run the engine", where=self._name)

    def measure(self, times: int) -> float:
        """Seconds of device time of `times` executions."""
        return self._stream.elapsed(self._launch, times)

    def close(self) -> None:
        """Free engine, graph and memory."""
        self._stream.synchronize()
        self._stream.close()
        del self._context, self._engine, self._runtime
        self._device.close()
