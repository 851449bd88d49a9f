"""The fastest way to run each quantised Linear on this device, found by timing, once a shape, and remembered.

For a weight [N, K], M rows and what follows the product, every way that can serve is built, searched (the
algorithm of cuSPARSELt, the tile of Triton) and timed; the fastest of those allowed serves, so a sparse kernel that
does not pay gives way to a dense one, layer by layer. All ways compute the same function. On a CPU there is nothing to
choose: `dense` is the reference.

Answers are kept in a JSON file under a key of all that they depend on: GPU, versions, shape, tail. A file that cannot
be read is as good as none. Limits: a small weight stays in the L2 cache while it is timed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gpusq_onnx.files import atomic_write, foreign
from gpusq_onnx.parsing import parse_json
from gpusq_onnx.runtime.kernels import dense, sparse
from gpusq_onnx.runtime.kernels.arithmetic import Tail
from gpusq_onnx.runtime.kernels.graphs import CudaRunner, compiled

WAYS = ("sparse", "dense", "fused")
DENSE_WAYS = ("dense", "fused")
_SAMPLES, _EXECUTIONS = 5, 20

Setting = tuple[int, ...]
Build = Callable[[], tuple[nn.Module, Setting]]


@dataclass(frozen=True)
class KernelChoice:
    """What was found for one shape.

    Attributes:
        shape: [M, N, K].
        tail: what follows the product.
        microseconds: the time of each way that can serve, at its best setting; empty on a CPU.
        settings: that setting, an algorithm or a tile, as numbers.
        refused: why the other ways cannot.
    """

    shape: tuple[int, int, int]
    tail: str
    microseconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def best(self, ways: Sequence[str] = WAYS) -> str:
        """The fastest of these ways; "dense" where none was timed."""
        timed = {way: time for way, time in self.microseconds.items() if way in ways}
        return min(timed, key=lambda way: timed[way]) if timed else "dense"


class Chooser:
    """Chooses on one device; `store`: the JSON file that keeps answers, None: they live as long as this object."""

    def __init__(self, device: torch.device, *, store: Path | None = None) -> None:
        self.device, self._store, self._timed = device, store, device.type == "cuda"
        self.operators: sparse.Operators | str = (
            sparse.Operators.find(device) if self._timed else "cuSPARSELt needs a GPU"
        )
        self._answers: dict[str, KernelChoice] = {}

    @property
    def answers(self) -> list[KernelChoice]:
        """One a shape and tail, in the order in which they were asked for."""
        return list(self._answers.values())

    def build(self, codes: Tensor, tail: Tail, rows: int, *, is_sparse: bool, ways: Sequence[str] = WAYS) -> nn.Module:
        """The module that serves the weight `codes`[N, K] best: INT8 codes [rows, K] to the tail's result [rows, N]."""
        codes, tail = codes.to(self.device), tail.to(self.device)
        answer = self.ask(codes, tail, rows, is_sparse=is_sparse)
        way = answer.best(ways)
        if way == "sparse" and isinstance(self.operators, sparse.Operators):
            return sparse.SparseLinear(codes, tail, self.operators, sparse.Algorithm(*answer.settings[way]))
        if way == "fused":
            from gpusq_onnx.runtime.kernels.fused import FusedLinear, Tile

            return FusedLinear(codes, tail, Tile(*answer.settings[way]))
        return dense.DenseLinear(codes, tail)

    def ask(self, codes: Tensor, tail: Tail, rows: int, *, is_sparse: bool) -> KernelChoice:
        """The times of all ways for this shape: remembered, read from the store, or taken now."""
        n, k = codes.shape
        key = f"{rows}x{n}x{k} {tail.kind}{'' if is_sparse else ' dense'}"
        if key not in self._answers:
            if not self._timed:
                self._answers[key] = KernelChoice((rows, n, k), tail.kind)
            elif found := self._read(key):
                self._answers[key] = found
            else:
                self._answers[key] = self._measure(codes.to(self.device), tail.to(self.device), rows, is_sparse)
                self._write(key, self._answers[key])
        return self._answers[key]

    def candidates(self, way: str, codes: Tensor, tail: Tail, x: Tensor) -> Iterator[Build]:
        """What builds one way at each of its settings; building is where one that does not fit raises."""
        if way == "sparse" and isinstance(self.operators, sparse.Operators):
            yield partial(_searched, codes, tail, self.operators, x)
        elif way == "fused":
            from gpusq_onnx.runtime.kernels.fused import TILES, FusedLinear

            yield from (partial(_set, FusedLinear(codes, tail, tile), tuple(asdict(tile).values())) for tile in TILES)
        else:
            yield partial(_set, dense.DenseLinear(codes, tail), ())

    def why_not(self, way: str, n: int, k: int, *, is_sparse: bool) -> str | None:
        """Why one way cannot serve a weight [n, k]; None: it can."""
        if way == "sparse":
            reason = sparse.why_not(n, k, is_sparse)
            return reason or (self.operators if isinstance(self.operators, str) else None)
        if way == "fused":
            if find_spec("triton") is None:
                return "Triton is not installed"
            from gpusq_onnx.runtime.kernels import fused

            return fused.why_not(k)
        return dense.why_not(n, k, self.device)

    def _measure(self, codes: Tensor, tail: Tail, rows: int, is_sparse: bool) -> KernelChoice:
        n, k = codes.shape
        x = torch.randint(-127, 128, (rows, k), dtype=torch.int8, device=self.device)
        answer = KernelChoice((rows, n, k), tail.kind)
        for way in WAYS:
            if reason := self.why_not(way, n, k, is_sparse=is_sparse):
                answer.refused[way] = reason
                continue
            for build in self.candidates(way, codes, tail, x):
                try:
                    module, setting = build()
                    time = round(1e6 * self._seconds(module, x), 2)
                except Exception as error:  # a tile that does not fit, a shape that a library refuses: out of the race
                    answer.refused[way] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                    continue
                if time < answer.microseconds.get(way, float("inf")):
                    answer.microseconds[way], answer.settings[way] = time, setting
            if way in answer.microseconds:
                answer.refused.pop(way, None)
        return answer

    def _seconds(self, module: nn.Module, x: Tensor) -> float:
        """Of one execution with its tail compiled, as it runs inside a compiled network."""
        run = module if type(module).__name__ == "FusedLinear" else compiled(module)  # nothing is left to fuse there

        def repeated() -> None:
            for _ in range(_EXECUTIONS):
                run(x)

        runner = CudaRunner(repeated, self.device)
        found = median(runner.measure(1) / _EXECUTIONS for _ in range(_SAMPLES))
        runner.close()
        return found

    def _key(self, key: str) -> str:
        library = self.operators.version if isinstance(self.operators, sparse.Operators) else None
        return " | ".join([_name(self.device), f"torch {torch.__version__}", f"cuSPARSELt {library}", key])

    def _read(self, key: str) -> KernelChoice | None:
        found = _load(self._store).get(self._key(key))
        try:
            return None if found is None else _answer(found)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def _write(self, key: str, answer: KernelChoice) -> None:
        if self._store is None:
            return
        self._store.parent.mkdir(parents=True, exist_ok=True)
        kept = {**_load(self._store), self._key(key): asdict(answer)}
        with atomic_write(self._store) as (file,):
            file.write(json.dumps(kept, indent=1).encode())


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _searched(codes: Tensor, tail: Tail, operators: sparse.Operators, x: Tensor) -> tuple[nn.Module, Setting]:
    algorithm = sparse.search(sparse.SparseLinear(codes, tail, operators), x)
    return sparse.SparseLinear(codes, tail, operators, algorithm), tuple(asdict(algorithm).values())


def _set(module: nn.Module, setting: Setting) -> tuple[nn.Module, Setting]:
    return module, setting


def _answer(found: dict[str, Any]) -> KernelChoice:
    """As it was written; JSON has lists where an answer has tuples."""
    rows, n, k = found["shape"]
    settings = {way: tuple(setting) for way, setting in found["settings"].items()}
    return KernelChoice((rows, n, k), found["tail"], dict(found["microseconds"]), settings, dict(found["refused"]))


def _load(store: Path | None) -> dict[str, Any]:
    """All answers; none where the file is somebody else's, or none that can be read."""
    if store is None or not store.is_file():
        return {}
    try:
        found = {} if foreign(store) else parse_json(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
