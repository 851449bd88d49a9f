"""onnxruntime as a benchmark's backend, on the CPU or on a GPU, with inputs and outputs bound in place.

On a GPU inputs lie in device memory and outputs stay there (I/O binding); runs queue up without waiting for each other
and the last one is waited for. A CUDA graph is tried first (`enable_cuda_graph`), and what keeps onnxruntime from one
is noted. TF32 is on or off as asked (`use_tf32`; onnxruntime's own default is on). onnxruntime has no 2:4 kernels: a
sparse model runs dense here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedModelError
from gpusq_onnx.runtime.bench.backend import CPU_BASELINES, GPU_BASELINES, Baseline, Variant, random_feed
from gpusq_onnx.runtime.bench.timing import Runner
from gpusq_onnx.runtime.machine import versions
from gpusq_onnx.runtime.ort import Feed, Session, running

CUDA = "CUDAExecutionProvider"


class OrtBackend:
    """onnxruntime on the CPU (`gpu` false) or through its CUDA provider; see `backend.Backend`."""

    def __init__(self, *, gpu: bool = False) -> None:
        self.name = "onnxruntime-cuda" if gpu else "onnxruntime"
        self.gpu = gpu
        self.baselines: Sequence[Baseline] = GPU_BASELINES if gpu else CPU_BASELINES
        self._notes: list[str] = []

    def require(self) -> dict[str, str]:
        """onnxruntime's version. Raises EnvironmentLacking where the CUDA provider or a GPU is missing."""
        import onnxruntime

        if self.gpu and CUDA not in onnxruntime.get_available_providers():
            raise EnvironmentLacking(
                "onnxruntime has no CUDA provider here",
                found=", ".join(onnxruntime.get_available_providers()),
                hint="pip install onnxruntime-gpu, on a machine with an NVIDIA GPU, its driver, CUDA and cuDNN",
            )
        if self.gpu:
            from gpusq_onnx.runtime.tensorrt.gpu import current

            if current() is None:
                raise EnvironmentLacking(
                    "there is no NVIDIA GPU that CUDA can use here",
                    hint="run this on a machine with an NVIDIA GPU and its driver, or take --backend onnxruntime",
                )
        return versions("onnxruntime", "onnxruntime-gpu")

    def notes(self) -> list[str]:
        """Which models got no CUDA graph, or no fused Q/DQ, and why."""
        return self._notes

    def choices(self) -> list[str]:
        """None: the runtime chooses, and does not say."""
        return []

    def open(self, variant: Variant, batch: int) -> Runner:
        """See `backend.Backend.open`; Q/DQ nodes are fused as onnxruntime likes, or run as written where that fails."""
        if not self.gpu:
            return _Bound(self._session(variant, "CPUExecutionProvider", {}), batch, "cpu")
        options = {"use_tf32": str(int(variant.precision != "FP32"))}
        try:
            runner = _Bound(self._session(variant, CUDA, {**options, "enable_cuda_graph": "1"}), batch, "cuda")
            runner.measure(2)  # the graph is recorded by the first run
        except UnsupportedModelError as error:
            self._note(f"{variant.path.name}: no CUDA graph: {_first(error)}")
            return _Bound(self._session(variant, CUDA, options), batch, "cuda")
        return runner

    def _session(self, variant: Variant, provider: str, options: dict[str, str]) -> Session:
        try:
            return Session(variant.path, provider=provider, provider_options=options)
        except UnsupportedModelError as error:
            session = Session(variant.path, provider=provider, provider_options=options, exact_qdq=True)
            self._note(
                f"{variant.path.name}: onnxruntime fails to fuse its Q/DQ, which run as written: {_first(error)}"
            )
            return session

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)


class _Bound:
    """A session with inputs and outputs bound on its device."""

    def __init__(self, session: Session, batch: int, device: str) -> None:
        import onnxruntime

        self._session = session
        feed: Feed = random_feed(session.inputs(), batch, session.name)
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = 4
        if device != "cpu":  # queue the runs up; `synchronize_outputs` waits for the last
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._binding = session.handle.io_binding()
        self._kept = [onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0) for value in feed.values()]
        for name, value in zip(feed, self._kept, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        self._outputs = [str(value.name) for value in session.handle.get_outputs()]  # of any type: nobody reads them
        for output in self._outputs:
            self._binding.bind_output(output, device)
        if device != "cpu":
            self._hold_outputs()

    def _hold_outputs(self) -> None:
        """A CUDA graph wants the same output memory every time: take what the first run allocated."""
        self._run()
        self._binding.synchronize_outputs()
        made: list[Any] = self._binding.get_outputs()
        self._kept += made
        for output, value in zip(self._outputs, made, strict=True):
            self._binding.bind_ortvalue_output(output, value)

    def _run(self) -> None:
        with running(self._session.name):
            self._session.handle.run_with_iobinding(self._binding, self._options)

    def measure(self, times: int) -> float:
        """Wall seconds of `times` runs, until the last has ended."""
        self._binding.synchronize_inputs()
        began = time.perf_counter()
        for _ in range(times):
            self._run()
        self._binding.synchronize_outputs()
        return time.perf_counter() - began

    def close(self) -> None:
        """Free the session and what is bound."""
        del self._binding, self._session
        self._kept.clear()


def _first(error: UnsupportedModelError) -> str:
    return str(error.details["found"] or error.what).splitlines()[0]
