"""What `pack` writes, broken: its bytes, its table of contents, its tensors; for unpack. And reports, for `report`."""

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

KEY = "gpusq_onnx"


def make(random: Random, folder: Path) -> list[str]:
    """A broken container and the command that opens it."""
    header, body = random.choice(_packed())
    if random.random() < 0.6:
        header = json.loads(json.dumps(header))
        contents = json.loads(header["__metadata__"][KEY])
        for _ in range(random.choice((1, 1, 2, 3))):
            contents = mutate.value_of(random, contents)
        header["__metadata__"][KEY] = json.dumps(contents)
    elif random.random() < 0.5:
        header = mutate.value_of(random, header)
    text = json.dumps(header).encode(errors="replace")
    data = len(text).to_bytes(8, "little") + text + body
    (folder / "m.gpusq").write_bytes(mutate.bytes_of(random, data) if random.random() < 0.35 else data)
    (folder / OUT).mkdir()
    return ["unpack", str(folder / "m.gpusq"), "-o", str(folder / OUT / "made.onnx")]


def judge(folder: Path, out: Path) -> str:
    """What comes back is what went in: the digests in the file are the files' own."""
    made = sorted(path.name for path in out.iterdir())
    return "" if "made.onnx" in made and len(made) <= 2 else f"unpacked to {made}"


@lru_cache(maxsize=1)
def _packed() -> list[tuple[dict[str, Any], bytes]]:
    """Containers of a pruned model in one file and in two, as (header, tensors)."""
    from gpusq_onnx.cli import main

    found = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        for external in (False, True):
            model, made, packed = (Path(scratch) / f"{external}{name}" for name in ("m.onnx", "p.onnx", "p.gpusq"))
            onnx.save(
                seeds.block(), model, save_as_external_data=external, location=f"{external}.d", size_threshold=256
            )
            main(["apply", str(model), "-p", "prune24{method=magnitude}", "-o", str(made), "-q"])
            main(["pack", str(made), "-o", str(packed), "-q"])
            data = packed.read_bytes()
            size = int.from_bytes(data[:8], "little")
            found.append((json.loads(data[8 : 8 + size]), data[8 + size :]))
    return found


TARGET = Target("containers", make, judge)
