"""The paper's tables, made anew with this project's own passes, as one command; resumable.

    python -m tools.paper [--only MODEL,...] [--kinds shapes,int8] [--until HH:MM]   what is missing, then the page
    python -m tools.paper --page                                                     the tables of docs/paper.md alone

A step is a model and a kind: `shapes` (the dense model, counted from its shapes), a compressed format, or `figures`
(activation maps of the ViT-Tiny; its compressed forms and the pictures are in out/paper/). It runs in a process of its
own, so that its memory returns, and leaves one JSON file, docs/paper/MODEL.KIND.json, with the commit, the model's
digest and the seconds. A step that ended well is not run again, unless its passes have changed. All shapes come first,
then small models before large ones. Exports are the zoo's (`tools.zoo.exports`: its environment variables hold here,
too); GPUSQ_TRT_CPU is the parser's folder, as for `make acceptance`.
Exit code 0: nothing is missing of what was asked for; 1: a step failed; 2: no such model or kind; 3: steps are left for
another call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpusq_onnx.files import write_text
from tools.paper.figures import figures
from tools.paper.page import filled
from tools.paper.plot import draw
from tools.paper.rows import CAM, FORMATS, ORDER, row_of
from tools.paper.work import OUT, carried_out, commit, passes_of
from tools.zoo.exports import ROOT

RECORDS = ROOT / "docs" / "paper"
PAGE = ROOT / "docs" / "paper.md"
KINDS = ("shapes", *FORMATS, "figures")
LIMIT = 1500.0  # seconds of one step


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, write the page, say what is left."""
    options = _parser().parse_args(arguments)
    if options.step:
        return _step(*options.step, options.records)
    models, kinds = options.only.split(",") if options.only else ORDER, options.kinds.split(",")
    wrong = [word for word in models if word not in ORDER] + [word for word in kinds if word not in KINDS]
    if wrong:
        there = ", ".join((*ORDER, *KINDS))
        print(f"no model or kind is named {wrong[0]!r}; there are {there}", file=sys.stderr)
        return 2
    steps = steps_of(models, kinds)
    options.records.mkdir(parents=True, exist_ok=True)
    failed, left = [], []
    for model, kind in steps if not options.page else ():
        if is_done(record_of(options.records, model, kind), model, kind):
            continue
        if options.until and datetime.now().strftime("%H:%M") >= options.until:
            left.append(f"{model}.{kind}")
            continue
        found = _run(model, kind, options.records)
        print(f"{model} {kind}: {found['status']}, {found['seconds']:.0f} s", flush=True)
        if found["status"] != "done":
            failed.append(f"{model}.{kind}")
    text = filled(options.write.read_text(encoding="utf-8"), stored(options.records))
    write_text(options.write, text)
    if find_spec("matplotlib"):
        (options.write.parent / "images").mkdir(exist_ok=True)
        draw(stored(options.records), options.write.parent / "images" / "paper.svg")
    print(f"failed: {' '.join(failed) or '-'}\nleft for another call: {' '.join(left) or '-'}")
    return 1 if failed else 3 if left else 0


def steps_of(models: Sequence[str], kinds: Sequence[str]) -> list[tuple[str, str]]:
    """(model, kind) in order: the cheap columns of all, then model by model; figures of the one that has them."""
    first = [(model, "shapes") for model in models if "shapes" in kinds]
    then = [(model, kind) for model in models for kind in KINDS[1:] if kind in kinds]
    return first + [step for step in then if step[1] != "figures" or step[0] == CAM]


def record_of(folder: Path, model: str, kind: str) -> dict[str, Any] | None:
    """What a step left; None where it has not run."""
    path = folder / f"{model}.{kind}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def is_done(record: dict[str, Any] | None, model: str, kind: str) -> bool:
    """Whether a step need not run: it ended well, and would do the same again."""
    return bool(record) and record["status"] == "done" and record["passes"] == passes_of(row_of(model), kind)


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """The records that hold, by "MODEL.KIND": of steps that ended well and would do the same again."""
    steps = [(model, kind) for model in ORDER for kind in KINDS]
    found = {step: record_of(folder, *step) for step in steps}
    return {".".join(step): record for step, record in found.items() if record is not None and is_done(record, *step)}


def _run(model: str, kind: str, folder: Path) -> dict[str, Any]:
    """One step in a process of its own; its record, also of one that failed."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tools.paper", "--records", str(folder), "--step", model, kind]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
        tail, status = (done.stdout + done.stderr)[-2000:], "done" if done.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        tail, status = f"no result after {LIMIT:.0f} s", "failed"
    seconds = time.monotonic() - began
    if status == "failed":
        last = next((line for line in reversed(tail.splitlines()) if line.strip()), "")
        _write(
            folder, model, kind, {"status": "failed", "reason": last[:300], "passes": passes_of(row_of(model), kind)}
        )
        print(tail, file=sys.stderr)
    return {**(record_of(folder, model, kind) or {"status": "failed"}), "seconds": seconds}


def _step(model: str, kind: str, folder: Path) -> int:
    began = time.monotonic()
    row = row_of(model)
    harness = Path(os.environ.get("GPUSQ_TRT_CPU") or ROOT / ".venv" / "trt_cpu")
    found = figures(row, OUT) if kind == "figures" else carried_out(row, kind, harness)
    facts = {"status": "done", "passes": passes_of(row, kind), "commit": commit()}
    _write(folder, model, kind, {**facts, "seconds": round(time.monotonic() - began), **found})
    return 0


def _write(folder: Path, model: str, kind: str, record: dict[str, Any]) -> None:
    write_text(folder / f"{model}.{kind}.json", json.dumps(record, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="MODEL,…", default="", help="these models alone; default: all")
    parser.add_argument("--kinds", metavar="KIND,…", default=",".join(KINDS), help="shapes, int8, int4; default: all")
    parser.add_argument("--until", metavar="HH:MM", default="", help="begin no step after this time")
    parser.add_argument("--records", type=Path, default=RECORDS, help="the folder of the JSON files")
    parser.add_argument("--write", type=Path, default=PAGE, metavar="FILE.md", help="the page whose blocks are filled")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    parser.add_argument("--step", nargs=2, metavar=("MODEL", "KIND"), help="one step, in this process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
