"""The fastest way to run each quantised Linear on this device, found by timing, once a shape, and remembered.

For a weight [N, K], M rows and what stands behind the product, every way that can serve is built, searched (the
algorithm of cuSPARSELt, the tile of Triton) and timed; the fastest serves, so a sparse kernel that does not pay gives
way to a dense one, layer by layer. All ways compute the same function. On a CPU there is nothing to choose: `dense` is
the reference.

Answers are kept in a JSON file under a key of all that they depend on: GPU, versions, shape, tail, ways. A file that
cannot be read is as good as none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gpusq_onnx.runtime.kernels import dense, sparse
from gpusq_onnx.runtime.kernels.arithmetic import Tail
from gpusq_onnx.runtime.kernels.graphs import CudaRunner

WAYS = ("sparse", "dense", "fused")
DENSE_WAYS = ("dense", "fused")
_SAMPLES, _EXECUTIONS = 5, 20


@dataclass(frozen=True)
class Answer:
    """What was found for one shape.

    Attributes:
        shape: [M, N, K].
        tail: what stands behind the product.
        way: the one that serves.
        setting: its algorithm or tile, as numbers.
        microseconds: the time of each way that can serve, at its best setting; empty on a CPU.
        refused: why the others cannot.
    """

    shape: tuple[int, int, int]
    tail: str
    way: str
    setting: tuple[int, ...] = ()
    microseconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


Build = Callable[[], tuple[nn.Module, tuple[int, ...]]]


class Chooser:
    """Chooses on one device.

    Args:
        device: where the Linears run.
        ways: those allowed; `DENSE_WAYS` gives the dense rival.
        store: the JSON file that keeps answers; None: in memory only.
        compiled: time each way with its tail compiled, as it runs inside a compiled network.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        ways: Sequence[str] = WAYS,
        store: Path | None = None,
        compiled: bool = True,
    ) -> None:
        self.device, self.ways, self._store, self._compiled = device, tuple(ways), store, compiled
        self._operators = sparse.Operators.find(device) if device.type == "cuda" and "sparse" in ways else "no GPU"
        self._answers: dict[str, Answer] = {}

    @property
    def operators(self) -> sparse.Operators | str:
        """What of cuSPARSELt works here, or why nothing does."""
        return self._operators

    @property
    def answers(self) -> list[Answer]:
        """One a shape, in the order in which they were asked for."""
        return list(self._answers.values())

    def build(self, codes: Tensor, tail: Tail, rows: int, *, is_sparse: bool) -> nn.Module:
        """The module that serves the weight `codes`[N, K] best: INT8 codes [rows, K] to the tail's result [rows, N]."""
        codes, tail = codes.to(self.device), tail.to(self.device)
        n, k = codes.shape
        key = f"{rows}x{n}x{k} {tail.kind}{'' if is_sparse else ' dense'}"
        if self.device.type != "cuda":
            self._answers.setdefault(key, Answer((rows, n, k), tail.kind, "dense"))
            return dense.DenseLinear(codes, tail)
        answer = self._answers.get(key) or self._read(key) or self._ask(codes, tail, rows, is_sparse)
        if key not in self._answers:
            self._answers[key] = answer
            self._write(key, answer)
        return self._made(answer, codes, tail)

    def _made(self, answer: Answer, codes: Tensor, tail: Tail) -> nn.Module:
        if answer.way == "sparse" and isinstance(self._operators, sparse.Operators):
            return sparse.SparseLinear(codes, tail, self._operators, sparse.Algorithm(*answer.setting))
        if answer.way == "fused":
            from gpusq_onnx.runtime.kernels.fused import FusedLinear, Tile

            return FusedLinear(codes, tail, Tile(*answer.setting))
        return dense.DenseLinear(codes, tail)

    def _ask(self, codes: Tensor, tail: Tail, rows: int, is_sparse: bool) -> Answer:
        n, k = codes.shape
        x = torch.randint(-127, 128, (rows, k), dtype=torch.int8, device=self.device)
        refused = {way: reason for way in self.ways if (reason := self._why_not(way, n, k, is_sparse))}
        best: dict[str, tuple[float, tuple[int, ...]]] = {}
        for way in self.ways:
            if way in refused:
                continue
            for build in self._candidates(way, codes, tail, x):
                try:
                    module, setting = build()
                    found = self._seconds(module, x), setting
                except Exception as error:  # a tile that does not fit, a shape that a library refuses: out of the race
                    refused[way] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    continue
                best[way] = min(found, best.get(way, found))
        if not best:
            best["dense"] = (float("nan"), ())
        way = min(best, key=lambda name: best[name][0])
        times = {name: round(1e6 * seconds, 2) for name, (seconds, _) in best.items()}
        left = {name: reason for name, reason in refused.items() if name not in best}
        return Answer((rows, n, k), tail.kind, way, best[way][1], times, left)

    def _candidates(self, way: str, codes: Tensor, tail: Tail, x: Tensor) -> Iterator[Build]:
        if way == "sparse" and isinstance(self._operators, sparse.Operators):
            yield partial(_searched, codes, tail, self._operators, x)
        elif way == "fused":
            from gpusq_onnx.runtime.kernels.fused import TILES, FusedLinear

            yield from (partial(_set, FusedLinear(codes, tail, tile), tuple(asdict(tile).values())) for tile in TILES)
        else:
            yield partial(_set, dense.DenseLinear(codes, tail), ())

    def _why_not(self, way: str, n: int, k: int, is_sparse: bool) -> str | None:
        if way == "sparse":
            reason = sparse.why_not(n, k, is_sparse)
            return reason or (self._operators if isinstance(self._operators, str) else None)
        if way == "fused":
            if find_spec("triton") is None:
                return "Triton is not installed"
            from gpusq_onnx.runtime.kernels import fused

            return fused.why_not(k)
        return dense.why_not(n, k, self.device)

    def _seconds(self, module: nn.Module, x: Tensor) -> float:
        run = torch.compile(module, dynamic=False) if self._compiled else module

        def repeated() -> None:
            for _ in range(_EXECUTIONS):
                run(x)

        runner = CudaRunner(repeated, self.device)
        return median(runner.measure(1) / _EXECUTIONS for _ in range(_SAMPLES))

    def _key(self, key: str) -> str:
        module = self._operators
        library = module.version if isinstance(module, sparse.Operators) else None
        name = torch.cuda.get_device_name(self.device)
        return " | ".join([name, f"torch {torch.__version__}", f"cuSPARSELt {library}", "+".join(self.ways), key])

    def _read(self, key: str) -> Answer | None:
        found = _load(self._store).get(self._key(key))
        try:
            return None if found is None else _answer(found)
        except (KeyError, TypeError):
            return None

    def _write(self, key: str, answer: Answer) -> None:
        if self._store is None:
            return
        self._store.parent.mkdir(parents=True, exist_ok=True)
        kept = {**_load(self._store), self._key(key): asdict(answer)}
        temporary = self._store.with_name(f".{self._store.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        os.replace(temporary, self._store)


def _searched(codes: Tensor, tail: Tail, operators: sparse.Operators, x: Tensor) -> tuple[nn.Module, tuple[int, ...]]:
    algorithm = sparse.search(sparse.SparseLinear(codes, tail, operators), x)
    return sparse.SparseLinear(codes, tail, operators, algorithm), tuple(asdict(algorithm).values())


def _set(module: nn.Module, setting: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    return module, setting


def _answer(found: dict[str, Any]) -> Answer:
    """As it was written; JSON has lists where an answer has tuples."""
    rows, n, k = found["shape"]
    return Answer(**{**found, "shape": (rows, n, k), "setting": tuple(found["setting"])})


def _load(store: Path | None) -> dict[str, Any]:
    if store is None or not store.is_file():
        return {}
    try:
        found = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
