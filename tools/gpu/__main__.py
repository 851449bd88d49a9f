"""`make gpu`: all that wants a GPU, on a machine that has one and little else, in calls of a few minutes.

    python -m tools.gpu [--out out/gpu] [--minutes 8.5] [--wheels out/wheels] [--only STEP,…] [--retry STEP,…]
    python -m tools.gpu --rehearse --out /tmp/rehearsal      the same on a CPU, at tiny sizes: no figures

results.json and results.md in `--out` are written after each step; another call goes on where this one ended. All else
is below `--out`/work: models, whole outputs (logs/STEP.log), the environment of the carried wheels. Exit code 0: every
step is settled, whatever it found; 1: some failed; 3: steps are left for another call; 5: there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from gpusq_onnx.files import atomic_write
from gpusq_onnx.runtime.machine import cpu_name, read_gpu, versions
from tools.gpu.install import newer_cusparselt
from tools.gpu.page import page
from tools.gpu.plan import full, rehearsal, steps
from tools.gpu.runner import PATIENCE, Book, Step, carry_out
from tools.zoo.exports import ROOT, shared_folder

PACKAGES = ("torch", "triton", "nvidia-cusparselt-cu13", "onnx", "onnxruntime", "timm", "numpy")


def main(arguments: list[str] | None = None) -> int:
    """Run what is left and fits, write, say what is left."""
    options = _parser().parse_args(arguments)
    began = time.monotonic()
    gpu = read_gpu()
    if gpu is None and not options.rehearse:
        print("nvidia-smi finds no GPU: run this on a machine with one, or try it out with --rehearse", file=sys.stderr)
        return 5
    os.chdir(ROOT)
    out, work = options.out.resolve(), options.out.resolve() / "work"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    card = {"gpu": gpu.name, "driver": gpu.facts["driver_version"]} if gpu else {"no gpu": "a rehearsal"}
    book = Book(
        out / "results.json", {**card, "cpu": cpu_name(), "python": sys.version.split()[0], **versions(*PACKAGES)}
    )
    python, newer = Path(sys.executable), None

    def run(some: list[Step]) -> list[str]:
        seconds = 60 * options.minutes - (time.monotonic() - began)
        patience = 1000 * PATIENCE if options.rehearse else PATIENCE  # no CPU is too slow to rehearse on
        left = carry_out(some, book, python=python, folder=work / "logs", seconds=seconds, say=_say, patience=patience)
        with atomic_write(out / "results.md") as (file,):
            file.write(page({"machines": book.machines, "steps": book.steps}).encode())
        return left

    if options.wheels:
        run([_installing(options.wheels.resolve(), work / "venv")])
        python, newer = work / "venv" / "bin" / "python", newer_cusparselt(work / "venv")
        python = python if python.exists() else Path(sys.executable)
    size = rehearsal() if options.rehearse else full(_shared(options.shared))
    wanted = steps(size, work, newer)
    names = [step.name for step in wanted]
    chosen = [step for step in wanted if not options.only or _named(step.name, options.only)]
    if not chosen:
        print(f"no step is named {options.only}; there are: {' '.join(names)}", file=sys.stderr)
        return 2
    for name in [name for name in book.steps if options.retry and _named(name, options.retry)]:
        del book.steps[name]
    left = run(chosen)
    failed = [s.name for s in chosen if book.steps.get(s.name, {}).get("status") in ("failed", "timed out")]
    print(f"{len(chosen) - len(left)} of {len(chosen)} steps settled; {out / 'results.md'}")
    print(f"failed: {' '.join(failed) or '-'}\nleft for another call: {' '.join(left) or '-'}")
    return 3 if left else 1 if failed else 0


def _say(text: str) -> None:
    print(text, flush=True)


def _named(name: str, wanted: str) -> bool:
    """Whether a step is named, whole or by the beginning of its name."""
    return name.startswith(tuple(wanted.split(",")))


def _shared(given: Path | None) -> Path:
    """Where the models and images are: as it was said, else in the checkout or beside it."""
    if given is not None:
        return given.resolve()
    return ROOT / "shared" if (ROOT / "shared").is_dir() else shared_folder().resolve()


def _installing(wheels: Path, venv: Path) -> Step:
    arguments = ("-m", "tools.gpu.install", "--wheels", str(wheels), "--into", str(venv))
    sizes = sorted(f"{path.name} {path.stat().st_size}" for path in wheels.rglob("*.whl*"))
    return Step("install", "tests", arguments, 30, (wheels,), mark=f"{venv.exists()} {sizes}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="results, and what is made on the way")
    parser.add_argument("--minutes", type=float, default=8.5, help="that this call may take")
    parser.add_argument("--wheels", type=Path, help="what `python -m tools.gpu.wheels` gathered")
    parser.add_argument("--shared", type=Path, help="the test data; default: shared/ in the checkout, or beside it")
    parser.add_argument("--only", default="", help="steps, or beginnings of their names, comma-separated")
    parser.add_argument("--retry", default="", help="the same: run these again, whatever became of them")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at tiny sizes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
