"""Reports: the JSON that verbs write, broken, for the page that `report` draws."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import onnx

from tools.fuzz import mutate, seeds
from tools.fuzz.arena import OUT, Target


def make(random: Random, folder: Path) -> list[str]:
    """A broken report and the command that draws it."""
    value = random.choice(_documents())
    for _ in range(random.choice((1, 1, 2, 4))):
        value = mutate.value_of(random, value)
    text = json.dumps(value).encode(errors="replace")
    if random.random() < 0.1:
        text = random.choice(
            (b"[" * 99_999, b'{"steps": ' * 9999, b"1" * 5000, b"\xff", b"", b"NaN", text[: len(text) // 2])
        )
    (folder / "r.json").write_bytes(mutate.bytes_of(random, text) if random.random() < 0.2 else text)
    return ["report", str(folder / "r.json"), "-o", str(folder / OUT / "page.html")]


@lru_cache(maxsize=1)
def _documents() -> list[Any]:
    from gpusq_onnx.cli import main

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(scratch)
        onnx.save(seeds.block(), folder / "m.onnx")
        main(["apply", str(folder / "m.onnx"), "-p", "prune24,qdq-int8", "-q", "-o", str(folder / "p.onnx"),
              "--samples", "2", "--report", str(folder / "apply.json")])  # fmt: skip
        main(["plan", str(folder / "m.onnx"), "-p", "prune24", "-q", "--report", str(folder / "plan.json")])
        main(["check", str(folder / "m.onnx"), str(folder / "p.onnx"), "-q", "--samples", "2",
              "--report", str(folder / "check.json")])  # fmt: skip
        main(["bench", str(folder / "m.onnx"), "--backend", "onnxruntime", "--batch", "1", "--rounds", "3", "-q",
              "--report", str(folder / "bench.json")])  # fmt: skip
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [*found, _ENGINE]


_ENGINE = {
    "engine": {"path": "m.plan", "bytes": 1, "sha256": "0"}, "library": {"name": "TensorRT", "version": "11"},
    "sparsity": {"eligible": 1, "chosen": 1}, "weights": [], "failures": [],
}  # fmt: skip


TARGET = Target("reports", make, patience=6)  # the first case of a process writes the documents
