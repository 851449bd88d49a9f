"""What is timed side by side: one Linear in every format, and one network in every format; integer ways checked first.

The check: the exact integer sum in FP64 (K 127² < 2⁵³) and the same tail, on some rows of a Linear and some images of a
network. A Linear runs over several copies of its input and weight in turn, enough to fill the L2 cache twice, so that a
batch of one does not live in the cache. FP8, BF16 and TF32 get the same bias and GELU as the integer ones, compiled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpusq_onnx.runtime.bench.timing import Runner, WallClock
from gpusq_onnx.runtime.kernels import float8
from gpusq_onnx.runtime.kernels.arithmetic import Tail, quantise
from gpusq_onnx.runtime.kernels.choose import DENSE_WAYS, WAYS, Chooser
from gpusq_onnx.runtime.kernels.graphs import CudaRunner
from tools.bench.vit import Network, NetworkShape, integer, noted
from tools.bench.vit import float8 as float8_vit

COPIES = 64  # of one Linear, at most
CHECKED = 256  # rows of a Linear
INTEGER = {"INT8": DENSE_WAYS, "INT8 2:4": WAYS}

Calls = list[tuple[Callable[..., object], tuple[Tensor, ...]]]


class Exact(nn.Module):
    """The reference: the product in FP64, where it is exact."""

    def __init__(self, codes: Tensor, tail: Tail) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tail(x.double() @ self.codes.double().t())
        return y


class ExactChooser(Chooser):
    """Makes the reference, whatever is asked for."""

    def build(self, codes: Tensor, tail: Tail, rows: int, *, is_sparse: bool, ways: Sequence[str] = WAYS) -> nn.Module:
        return Exact(codes.to(self.device), tail.to(self.device))


@contextmanager
def linear_formats(rows: int, n: int, k: int, chooser: Chooser, *, gelu: bool) -> Iterator[dict[str, Runner]]:
    """Runners of one Linear [rows, k] x [k, n] by format, closed at the end. Raises RuntimeError where one is wrong."""
    device = chooser.device
    random = torch.Generator(device).manual_seed(rows + n + k)
    calls: dict[str, Calls] = {}
    for _ in range(_copies(rows, n, k, device)):
        for name, call in _one_linear(rows, n, k, chooser, gelu, random):
            calls.setdefault(name, []).append(call)
    runners = {name: _runner(found, device, tf32=name == "TF32") for name, found in calls.items()}
    try:
        yield runners
    finally:
        for runner in runners.values():
            runner.close()


@contextmanager
def network_formats(shape: NetworkShape, batch: int, chooser: Chooser) -> Iterator[dict[str, Runner]]:
    """Runners of one network by format, closed at the end. Raises RuntimeError where an integer one is wrong."""
    device = chooser.device
    random = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, 3, shape.image, shape.image, generator=random)
    base = noted(shape, images[:2])
    runners = {}
    try:
        for name, network, dtype in _networks(base, images, chooser):
            call = (network.eval(), (images.to(device, dtype),))
            runners[name] = _runner([call], device, tf32=name == "TF32")
        yield runners
    finally:
        for runner in runners.values():
            runner.close()


def _networks(base: Network, images: Tensor, chooser: Chooser) -> Iterator[tuple[str, Network, torch.dtype]]:
    """(format, network on the device, type of its images)."""
    device, rest = chooser.device, _rest(chooser.device)
    floats = {"TF32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}
    for name, dtype in floats.items() if device.type == "cuda" else [("FP32", torch.float32)]:
        yield name, copy.deepcopy(base).to(device, dtype), dtype
    width = base.shape.width
    if device.type == "cuda" and float8.why_not(width, width, device) is None:
        yield "FP8", float8_vit(copy.deepcopy(base), device), torch.bfloat16
    for outputs in (False, True):
        for name, ways in INTEGER.items():
            label = f"{name}, INT8 out" if outputs else name
            network = integer(copy.deepcopy(base), len(images), chooser, rest, outputs=outputs, ways=ways)
            _check_network(network, base, images, label, outputs)
            yield label, network, rest


def _one_linear(
    rows: int, n: int, k: int, chooser: Chooser, gelu: bool, random: torch.Generator
) -> Iterator[tuple[str, tuple[Callable[..., object], tuple[Tensor, ...]]]]:
    device, rest = chooser.device, _rest(chooser.device)
    x = torch.randn(rows, k, generator=random, device=device)
    w = torch.randn(n, k, generator=random, device=device) * k**-0.5
    groups = w.view(n, k // 4, 4)
    groups.scatter_(2, groups.abs().argsort(2)[:, :, :2], 0.0)
    bias = torch.randn(n, generator=random, device=device) * 0.02
    floats = {"TF32": torch.float32, "BF16": torch.bfloat16} if device.type == "cuda" else {"FP32": torch.float32}
    for name, dtype in floats.items():
        yield name, (_float_gelu if gelu else _float_linear, (x.to(dtype), w.to(dtype), bias.to(dtype)))
    step, scale = x.abs().max() / 127, w.abs().amax(1) / 127
    activation, out = ("gelu", torch.tensor(0.02)) if gelu else ("", None)
    tail = Tail(step * scale, bias, activation=activation, out=out, dtype=rest).to(device)
    if device.type == "cuda" and float8.why_not(n, k, device) is None:
        eight = float8.float8_scale(step)
        plain = Tail(scale, bias, activation=activation, dtype=torch.bfloat16)
        yield "FP8", (float8.Float8Linear(w, eight, plain), (float8.to_float8(x, eight),))
    codes, weight = quantise(x, step), quantise(w, scale[:, None], -127)
    ways = {**INTEGER, "INT8 2:4 always": ("sparse",)}
    if "sparse" not in chooser.ask(weight, tail, rows, is_sparse=True).microseconds:
        del ways["INT8 2:4 always"]
    some = torch.randint(0, rows, (min(rows, CHECKED),), generator=random, device=device)
    for name, allowed in ways.items():
        kernel = chooser.build(weight, tail, rows, is_sparse=True, ways=allowed)
        _check(kernel(codes)[some], Exact(weight, tail)(codes[some]), name, 0.01)
        yield name, (kernel, (codes,))


def _float_linear(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(x, w, bias)


def _float_gelu(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(functional.linear(x, w, bias))


def _rest(device: torch.device) -> torch.dtype:
    """The type of all that is not quantised."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class _InTurn:
    """A runner whose execution is `share` executions."""

    def __init__(self, runner: Runner, share: int) -> None:
        self._runner, self._share = runner, share

    def measure(self, times: int) -> float:
        return self._runner.measure(times) / self._share

    def close(self) -> None:
        self._runner.close()


def _runner(calls: Calls, device: torch.device, *, tf32: bool) -> Runner:
    """One after another: compiled and recorded as one CUDA graph on a GPU, plain calls on a CPU."""
    if device.type != "cuda":
        return _InTurn(WallClock(torch.no_grad()(_together(calls))), len(calls))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.compiler.reset()  # what other formats compiled was recorded already
    runs = [(_compiled(run), given) for run, given in calls]
    try:
        runner = CudaRunner(_together(runs), device)
    finally:
        torch.set_float32_matmul_precision(before)
    if not runner.recorded:
        raise RuntimeError(f"no CUDA graph: {runner.reason}")
    return _InTurn(runner, len(calls))


def _compiled(run: Callable[..., object]) -> Callable[..., object]:
    """Through torch.compile; a network block by block, so that its twelve blocks are compiled once."""
    if isinstance(run, Network):
        for block in run.blocks:
            block.compile(dynamic=False, fullgraph=True)
        return run
    return torch.compile(run, dynamic=False, fullgraph=True)


def _together(calls: Calls) -> Callable[[], object]:
    def run() -> list[object]:
        return [one(*given) for one, given in calls][-1:]

    return run


def _copies(rows: int, n: int, k: int, device: torch.device) -> int:
    """How many copies fill the L2 cache twice at one byte an element of weight, input and output."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(COPIES, -(-2 * cache // (n * k + rows * (n + k)))))


def _check_network(network: Network, base: Network, images: Tensor, name: str, outputs: bool) -> None:
    """The network, on its whole batch, against the reference on the first images of it."""
    device, rest = network.head.weight.device, network.head.weight.dtype
    some = min(len(images), 4)
    exact = integer(copy.deepcopy(base), some, ExactChooser(device), rest, outputs=outputs, ways=WAYS)
    with torch.no_grad():
        given = images.to(device, rest)
        _check(network(given)[:some], exact(given[:some]), name, 0.05)


def _check(found: Tensor, expected: Tensor, name: str, most: float) -> None:
    wrong = difference(found, expected)
    if not wrong < allowed(found, most):
        raise RuntimeError(f"{name} is wrong: {wrong:.3g} away from the reference")


def difference(found: Tensor, expected: Tensor) -> float:
    """Of codes, the share that is more than one step away, since ties round either way; of floats, the relative one."""
    if found.dtype == torch.int8:
        return float(((found.int() - expected.int()).abs() > 1).double().mean())
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def allowed(found: Tensor, most: float) -> float:
    """The difference that rounding explains: `most` in BF16, a thousandth of codes and in FP32."""
    return most if found.dtype == torch.bfloat16 else 1e-3
