"""GPU figures of Linears and whole ViTs (docs/benchmarks.md): INT8 2:4 against dense INT8, FP8, BF16 and TF32; torch.

    python -m tools.bench.gpu [--models vit_base,deit_base] [--batch 1,32,256] [--part linears|networks] [--out out/gpu]

Run from a bare checkout: it needs a CUDA build of torch and numpy, and neither ONNX, TensorRT nor onnxruntime. First
every integer way is checked against the exact reference on fresh random inputs; one that is wrong ends the run. Then
all formats of a shape are timed in the same interleaved rounds, as CUDA graphs, data in place. Tables go to stdout, all
samples and what was chosen for each shape into `--out`. `--device cpu --models tiny` shows that it runs, no figures.

Another cuSPARSELt than torch's: LD_PRELOAD=/path/libcusparseLt.so.0 before the command. The version that is reported,
and that answers are kept under, is that of the library that is loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpusq_onnx.report.markdown import table
from gpusq_onnx.runtime.bench.timing import Rounds, Timing, time_side_by_side
from gpusq_onnx.runtime.kernels.choose import Chooser, KernelChoice
from gpusq_onnx.runtime.kernels.sparse import Operators
from gpusq_onnx.runtime.machine import cpu_name, read_gpu, versions
from tools.bench.formats import linear_formats, network_formats
from tools.bench.lines import line_table
from tools.bench.models import MODELS

REFERENCES = ("TF32", "INT8")


@dataclass
class Result:
    """All that one run found."""

    machine: dict[str, Any]
    lines: list[dict[str, Any]] = field(default_factory=list)
    answers: list[KernelChoice] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Check, measure, print, write."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no GPU: install a CUDA build on a machine with one", file=sys.stderr)
        return 5
    chooser = Chooser(device, store=options.store or options.out / "kernels.json")
    result = Result(_machine(device, chooser))
    print("\n".join(f"{key}: {value}" for key, value in result.machine.items()), flush=True)
    rounds = Rounds(options.rounds, options.warm, options.least)
    for line in _lines(options, chooser, rounds):
        result.lines.append(line)
        print("\n".join(["", line["title"], "", *line_table(line)]), flush=True)
    result.answers = chooser.answers
    result.machine["under load"] = _clocks() if device.type == "cuda" else "-"
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**asdict(result), "answers": [asdict(a) for a in result.answers]}, indent=1)
    (options.out / "gpu.json").write_text(text + "\n", encoding="utf-8")
    print(f"\nclocks under load: {result.machine['under load']}\n\nwhat serves each shape (µs):\n")
    print("\n".join(_answers(result.answers)))
    return 0


def _lines(options: argparse.Namespace, chooser: Chooser, rounds: Rounds) -> Iterator[dict[str, Any]]:
    """One timed group after another: each Linear at each batch size, then each network."""
    for name in options.models.split(","):
        shape = MODELS[name]
        for batch in map(int, options.batch.split(",")):
            if options.part in ("", "linears"):
                for linear, (tokens, n, k, gelu) in shape.products.items():
                    rows = batch * tokens
                    work = 2.0 * rows * n * k
                    title = f"{name} {linear}, batch {batch}: [{rows}, {k}] x [{k}, {n}]"
                    with linear_formats(rows, n, k, chooser, gelu=gelu) as runners:
                        yield _line(title, time_side_by_side(runners, rounds), work=work)
            if options.part in ("", "networks"):
                with network_formats(shape, batch, chooser) as runners:
                    yield _line(f"{name}, batch {batch}", time_side_by_side(runners, rounds), batch=batch)


def _line(title: str, timings: Mapping[str, Timing], *, batch: int = 0, work: float = 0.0) -> dict[str, Any]:
    rows = {}
    for name, timing in timings.items():
        against = {f"x {other}": timing.faster_than(timings[other]) for other in REFERENCES if other in timings}
        rows[name] = {
            "milliseconds": 1e3 * timing.median,
            "spread": timing.spread,
            **({"images/s": batch / timing.median} if batch else {"TOP/s": work / timing.median / 1e12}),
            **against,
            "samples": timing.samples,
        }
    return {"title": title, "rows": rows}


def _answers(answers: list[KernelChoice]) -> list[str]:
    rows = []
    for answer in answers:
        times = ", ".join(f"{way} {time:g}" for way, time in answer.microseconds.items()) or "-"
        refused = "; ".join(f"no {way}: {reason}" for way, reason in answer.refused.items()) or "-"
        way, shape = answer.best(), "x".join(map(str, answer.shape))
        rows.append([shape, answer.tail, way, str(answer.settings.get(way, ())), times, refused])
    return table(["[M, N, K]", "tail", "way", "setting", "times", "refused"], rows)


def _machine(device: torch.device, chooser: Chooser) -> dict[str, Any]:
    found: dict[str, Any] = {"cpu": cpu_name(), "torch": torch.__version__, **versions("triton")}
    if device.type == "cuda":
        gpu = read_gpu()
        major, minor = torch.cuda.get_device_capability(device)
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "compute capability": f"{major}.{minor}",
            "driver": gpu.facts["driver_version"] if gpu else "nvidia-smi does not answer",
            "CUDA": torch.version.cuda,
        }
    operators = chooser.operators
    if isinstance(operators, Operators):
        outputs = sorted(str(kind).split(".")[-1] for kind in operators.outputs)
        with_bias = sorted(str(kind).split(".")[-1] for kind in operators.bias)
        found |= {"cuSPARSELt": operators.version, "INT8 2:4 into": f"{outputs}, with a bias {with_bias}"}
    else:
        found["cuSPARSELt"] = operators
    return found


def _clocks() -> str:
    gpu = read_gpu()
    return f"{gpu.clocks}, {gpu.facts['power.draw']}" if gpu else "nvidia-smi does not answer"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vit_base,deit_base", help=f"of {', '.join(MODELS)}, comma-separated")
    parser.add_argument("--batch", default="1,32,256", help="batch sizes, comma-separated")
    parser.add_argument("--part", default="", choices=("", "linears", "networks"), help="only this; default: both")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds; medians are shown")
    parser.add_argument("--warm", type=float, default=0.5, help="seconds of warm-up for each format")
    parser.add_argument("--least", type=float, default=0.02, help="seconds of a sample")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="where all numbers go")
    parser.add_argument("--store", type=Path, help="where searched kernels are kept; default: kernels.json in --out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
