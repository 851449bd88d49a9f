"""Timing on a CUDA device: a function recorded once as a CUDA graph and replayed, with events around the replays.

Replaying leaves the CPU's launch costs out, which are larger than the kernels at a batch of one. A function that
cannot be recorded runs as it is, and `recorded` says so. Inputs lie in device memory before; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM = 3  # runs before the recording: compilation, library handles, the allocator


def compiled(run: Callable[..., object]) -> Callable[..., object]:
    """`run` through torch.compile for fixed shapes, as one graph or not at all.

    What was compiled before is forgotten: dynamo keeps eight variants of a function, and one past that would run
    uncompiled. So record it (`CudaRunner`) before the next call of this.
    """
    torch.compiler.reset()
    return torch.compile(run, dynamic=False, fullgraph=True)


class CudaRunner:
    """A `timing.Runner` for `run` on `device`.

    Attributes:
        recorded: whether a CUDA graph is replayed.
        reason: why not, else "".
    """

    def __init__(self, run: Callable[[], object], device: torch.device) -> None:
        self._device = device
        self._replay: Callable[[], object] = run
        self._kept: object = None
        self.recorded, self.reason = False, ""
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side), torch.no_grad():
                for _ in range(WARM):
                    run()
            torch.cuda.current_stream(device).wait_stream(side)
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.no_grad(), torch.cuda.graph(graph):
                    self._kept = run()  # the outputs lie in the graph's memory
            except RuntimeError as error:
                self.reason = str(error).splitlines()[0]
                torch.cuda.synchronize(device)
            else:
                self._replay, self.recorded = graph.replay, True

    def measure(self, times: int) -> float:
        """Seconds of device time that `times` executions took."""
        with torch.cuda.device(self._device), torch.no_grad():
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            for _ in range(times):
                self._replay()
            ended.record()
            ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3

    def close(self) -> None:
        """Free the graph and its memory."""
        self._replay, self._kept = _closed, None
        torch.cuda.empty_cache()


def _closed() -> None:
    raise RuntimeError("this runner is closed")
