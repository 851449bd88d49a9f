"""`python -m tools.fuzz --models 20000 --options 5000 ...`: run the targets, print what came out; exit 1 on a failure.

A failing case is made again by its target and seed: `python -m tools.fuzz --again models 4711` runs it in this process,
with the traceback, and leaves its files in out/fuzz.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tools.fuzz import arena, targets


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    for target in targets.ALL.values():
        parser.add_argument(f"--{target.name}", type=int, default=0, metavar="N", help=f"cases of {target.name}")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--limit", type=float, default=10, help="seconds that a case may take")
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="where failing cases are kept")
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "SEED"), help="one case in this process")
    asked = parser.parse_args()
    if asked.again:
        return _again(*asked.again, asked.keep)
    targets.warm_up()
    failed = 0
    for target in targets.ALL.values():
        count = getattr(asked, target.name)
        if not count:
            continue
        began = time.perf_counter()
        score = arena.run(target, range(asked.first, asked.first + count), limit=asked.limit, keep=asked.keep)
        failed += len(score.failures)
        codes = ", ".join(f"{code}: {number}" for code, number in sorted(score.codes.items()))
        took = time.perf_counter() - began
        print(
            f"{target.name}: {count} cases in {took:.0f} s, {len(score.failures)} failures; exit codes {codes}; "
            f"slowest {score.slowest:.1f} s, most memory {score.most_memory / 2**20:.0f} MiB",
            flush=True,
        )
        kinds = Counter(what.splitlines()[0][:110] for _, what, _ in score.failures)
        for what, number in kinds.most_common(40):
            seed = next(seed for seed, found, _ in score.failures if found.startswith(what))
            print(f"  {number} x {what} (first seed {seed})", flush=True)
    return 1 if failed else 0


def _again(name: str, seed: str, keep: Path) -> int:
    target = targets.ALL[name]

    folder = keep / f"{name}-{seed}"
    answer = arena.play(target, int(seed), folder)
    print(answer["words"], answer["code"], answer["problem"], sep="\n")
    from gpusq_onnx.cli import main as command

    command(["--debug", *answer["words"]])
    return 1 if answer["problem"] else 0


if __name__ == "__main__":
    sys.exit(main())
