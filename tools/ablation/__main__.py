"""Table 6 of the paper on a small ViT, as one command: arms x seeds, resumable.

    python -m tools.ablation --data ../shared/data/cifar10 --out out/ablation [--seeds 3] [--only int8] [--jobs 2]

The dense model is trained first where it is missing (tools/ablation/vit_cifar10.py). Each arm and seed is a pipeline of
our own passes; `--jobs` processes share them and the cores: a model this small gains little from a second thread.
Results lie in the folder as JSON; table.md and table.json are written anew after each seed, table.svg at the end.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from gpusq_onnx.runtime.machine import usable_cpus
from tools.ablation import vit_cifar10
from tools.ablation.arms import GROUPS, Arm, arms, claims
from tools.ablation.runs import Desk, Size
from tools.ablation.table import draw, order_rows, orders, rows


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    jobs = 1 if torch.cuda.is_available() else usable_cpus()
    parser.add_argument("--jobs", type=int, default=jobs, help="processes; by default one a core, on a GPU one")
    parser.add_argument("--only", action="append", help="groups or KEYs of arms (float, int8.full); repeatable")
    for field in fields(Size):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "dense.onnx").exists():
        vit_cifar10.make(args.data, args.out)
    desk = Desk(args.out, args.data, Size(**{field.name: getattr(args, field.name) for field in fields(Size)}))
    wanted = [arm for arm in arms() if not args.only or arm.group in args.only or arm.key in args.only]
    results = []
    for result in carry_out(desk, wanted, args.seeds, args.jobs):
        results.append(result)
        print(
            f"seed {result['seed']} {result['group']}.{result['arm']}: top-1 {100 * result['top1']:.2f} %, "
            f"agreement {100 * result['agreement']:.2f} %, {result['seconds']:.0f} s",
            flush=True,
        )
        if len(results) % len(wanted) == 0:
            found = orders(args.out, claims(), range(result["seed"] + 1), desk.size.test)
            lines = [*rows(results, wanted), "", *order_rows(found)]
            (args.out / "table.md").write_text("\n".join(lines) + "\n")
            (args.out / "table.json").write_text(json.dumps({"results": results, "orders": found}, indent=1) + "\n")
    draw(results, wanted, args.out / "table.svg")
    print("\n".join(["", *lines]))


def carry_out(desk: Desk, wanted: list[Arm], seeds: int, jobs: int) -> Iterator[dict[str, Any]]:
    """Each arm's result, seed by seed: first what several arms start from, a seed in one process, then the arms."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cpus() // jobs))  # what a new process reads
    last = max((arm.group for arm in wanted), key=GROUPS.index)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        list(pool.map(desk.prepare, [last] * seeds, range(seeds)))
        yield from pool.map(desk.run, wanted * seeds, [seed for seed in range(seeds) for _ in wanted])


if __name__ == "__main__":
    main()
