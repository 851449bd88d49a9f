"""torch as a benchmark's backend: a Q/DQ graph on a GPU without TensorRT; or, exact and slow, on the CPU.

    as is        quantised Linears on integer kernels, sparse ones allowed where `variant.sparse`; the rest in BF16
    FP32, TF32, FP16, BF16   the graph's float twin in that type, TF32 in FP32 products where the name says so
    FP8          the float twin with E4M3 Linears where Q/DQ pairs were

On a GPU the network is compiled (torch.compile fuses quantisers, normalisation and activations around the products)
and replayed as a CUDA graph. On the CPU everything stays FP32 and nothing is compiled: the reference that tests compare
with onnxruntime.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedModelError
from gpusq_onnx.graph.io import load
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.canonical import spelled_out
from gpusq_onnx.runtime.bench.backend import Baseline, Variant, random_feed
from gpusq_onnx.runtime.bench.timing import Runner, WallClock
from gpusq_onnx.runtime.kernels.choose import DENSE_WAYS, WAYS, Chooser, KernelChoice
from gpusq_onnx.runtime.kernels.graphs import CudaRunner, compiled
from gpusq_onnx.runtime.machine import versions
from gpusq_onnx.runtime.ort import TensorInfo
from gpusq_onnx.torchgraph.call import fed
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.lowering.float_baselines import float8_network, float_twin
from gpusq_onnx.torchgraph.lowering.integer import lower
from gpusq_onnx.torchgraph.network import Network

_TYPES = {"FP32": torch.float32, "TF32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}
_STORED = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
_GPU_BASELINES = (
    Baseline("FP32", "float", "FP32"),
    Baseline("TF32", "float", "TF32"),
    Baseline("FP16", "float", "FP16"),
    Baseline("BF16", "float", "BF16"),
    Baseline("FP8", "int8", "FP8"),
    Baseline("INT8", "int8"),
)
_CPU_BASELINES = (Baseline("FP32", "float", "FP32"), Baseline("INT8", "int8"))


class TorchBackend:
    """torch on "cuda" or "cpu"; see `runtime.bench.backend.Backend`. `cache`: the folder of searched kernels."""

    def __init__(self, device: str = "cuda", cache: Path | None = None) -> None:
        self.gpu = device != "cpu"
        self.name = "torch" if self.gpu else "torch-cpu"
        self.baselines: Sequence[Baseline] = _GPU_BASELINES if self.gpu else _CPU_BASELINES
        self._device = torch.device(device)
        self._store = cache / "torch_kernels.json" if cache and self.gpu else None
        self._chooser: Chooser | None = None
        self._notes: list[str] = []

    def require(self) -> dict[str, str]:
        """Versions of torch, CUDA, cuSPARSELt and Triton. Raises EnvironmentLacking where torch finds no GPU."""
        if not self.gpu:
            return {"torch": torch.__version__}
        if not torch.cuda.is_available():
            built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
            raise EnvironmentLacking(
                "torch finds no GPU",
                found=f"torch {torch.__version__}, built {built}",
                hint="install a CUDA build of torch on a machine with an NVIDIA GPU, or take --backend onnxruntime",
            )
        library = torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None
        found = {"torch": torch.__version__, "CUDA": str(torch.version.cuda), "cuSPARSELt": str(library or "none")}
        return {**found, **versions("triton")}

    def notes(self) -> list[str]:
        """What ran without a CUDA graph."""
        return self._notes

    def choices(self) -> list[str]:
        """What serves each shape, with the times of the other ways, or why they cannot."""
        answers = self._chooser.answers if self._chooser and self.gpu else []
        return [_told(answer) for answer in answers]

    def open(self, variant: Variant, batch: int) -> Runner:
        """See `runtime.bench.backend.Backend.open`."""
        model = spelled_out(load(variant.path))
        infos = [TensorInfo(spec.name, spec.dtype, spec.shape) for spec in model.inputs()]
        feed = random_feed(infos, batch, str(variant.path))
        network = convert(model, train=("weight", "scale"))
        precision = variant.precision if network.quantisers else _stored(model, variant.precision)
        try:
            inputs = [fed(feed[name]).to(self._device) for name in network.inputs]
            body = self._body(network, precision, inputs, WAYS if variant.sparse else DENSE_WAYS)
            return self._recorded(body, inputs, variant) if self.gpu else _called(body, inputs)
        except torch.cuda.OutOfMemoryError as error:
            raise EnvironmentLacking(
                "the GPU has not enough memory", found=str(error).splitlines()[0], hint="take a smaller --batch"
            ) from error
        except RuntimeError as error:
            raise UnsupportedModelError(
                "torch cannot run the model", where=str(variant.path), found=str(error).splitlines()[0]
            ) from error

    def _body(self, network: Network, precision: str, inputs: list[Tensor], ways: Sequence[str]) -> fx.GraphModule:
        if precision in _TYPES:
            return float_twin(network, self._device, _TYPES[precision])
        if precision == "FP8":
            return float8_network(network, self._device)
        if self._chooser is None:
            self._chooser = Chooser(self._device, store=self._store)
        dtype = torch.bfloat16 if self.gpu else torch.float32
        body, _ = lower(network, inputs, self._chooser, dtype, ways)
        return body

    def _recorded(self, body: fx.GraphModule, inputs: list[Tensor], variant: Variant) -> Runner:
        with _products_in(tf32=variant.precision == "TF32"):
            run = compiled(body)
            runner = CudaRunner(lambda: run(*inputs), self._device)
        if not runner.recorded:
            self._notes.append(f"{variant.path.name} {variant.precision}: no CUDA graph: {runner.reason}")
        return runner


def _stored(model: Model, precision: str) -> str:
    """The type of a float model that is run "as is": what most of its constants are stored in."""
    if precision != "as is":
        return precision
    sizes = Counter(dict.fromkeys(_STORED.values(), 0))
    for constant in model.constants():
        if (name := _STORED.get(np.dtype(constant.dtype).name)) is not None:
            sizes[name] += math.prod(constant.shape)
    return sizes.most_common(1)[0][0]


def _called(body: fx.GraphModule, inputs: Sequence[Tensor]) -> WallClock:
    """Plain calls on the CPU; the first one here, so that what cannot run is reported before anything is timed."""

    @torch.no_grad()
    def run() -> Any:
        return body(*inputs)

    run()
    return WallClock(run)


class _products_in:
    """FP32 products in TF32, or not, while the block lasts; a recorded graph keeps what it was recorded with."""

    def __init__(self, *, tf32: bool) -> None:
        self._wanted = tf32

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._wanted

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


def _told(answer: KernelChoice) -> str:
    shape = "x".join(map(str, answer.shape))
    times = ", ".join(f"{way} {time:g} µs" for way, time in answer.microseconds.items())
    refused = "".join(f"; no {way}: {reason}" for way, reason in answer.refused.items())
    return f"Linear [M, N, K] = {shape} ({answer.tail}) runs {answer.best()}: {times}{refused}"
