"""`make bench`: every claim about time and memory, measured in one run; exit code 1 where a bar is missed.

    python -m tools.bench --model deit_base_224_legacy17.onnx --images folder/ [--repeat 5] [CASE ...]

Without --model, DeiT-Base is exported from ../shared/zoo into the zoo's cache. Tables land in out/bench.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tools.bench import cases
from tools.bench.cases import Line, Setting
from tools.bench.training import attending, distilling, training
from tools.zoo.exports import Zoo, shared_folder

CASES = {**cases.CASES, "training": training, "attending": attending, "distilling": distilling}
OUT = Path("out/bench")
SOURCES = ("gpusq_onnx", "passes")


def main() -> int:
    """Measure, print, and say whether every bar is met."""
    options = _parser().parse_args()
    model = options.model or Zoo.default().exported("deit_base_224", "legacy17")
    lines: list[Line] = []
    for folder in SOURCES:
        compileall.compile_dir(folder, quiet=1)  # as pip leaves a package, whatever PYTHONDONTWRITEBYTECODE says
    print(f"{model.name}: {model.stat().st_size / 1e6:.1f} MB; load average {os.getloadavg()[0]:.2f}, {_cpus()} CPUs")
    print(f"{'':42}{'ours':>10}{'reference':>12}{'ratio':>8}{'bar':>10}")
    with tempfile.TemporaryDirectory(prefix="gpusq-bench-") as scratch:
        setting = Setting(model, options.images, Path(scratch), options.repeat)
        for name in options.cases or CASES:
            for line in CASES[name](setting):
                lines.append(line)
                print(_text(line), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    found = [{**asdict(line), "met": line.met} for line in lines]
    (OUT / "bench.json").write_text(json.dumps({"model": model.name, "cpus": _cpus(), "lines": found}, indent=2) + "\n")
    return 0 if all(line.met for line in lines) else 1


def _text(line: Line) -> str:
    ratio = line.ours / line.reference
    numbers = f"{line.ours:10.2f}{line.reference:12.2f}{ratio:8.2f}{line.bar:10.2f} {line.unit:2}"
    return f"{line.what:42}{numbers}  {'met' if line.met else 'MISSED'}: {line.against}"


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"which claims: {', '.join(CASES)}; all by default")
    parser.add_argument("--model", type=Path, help="an ONNX model; default: DeiT-Base from the zoo")
    default = shared_folder() / "data" / "imagenet" / "train"
    parser.add_argument("--images", type=Path, default=default, help="a folder of images to calibrate on")
    parser.add_argument("--repeat", type=int, default=5, help="how often each pair runs; medians are shown")
    return parser


if __name__ == "__main__":
    sys.exit(main())
