"""The ablation's table: mean over seeds, paired bootstrap intervals, and whether the claimed orders came out.

The interval of a difference of two arms is that of the mean over seeds of (right with one) - (right with the other),
image by image, resampled over the images 2000 times: seeds and images are paired, as docs/method.md asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.report.markdown import table
from tools.ablation.arms import GROUPS, Arm, Claim

DRAWS = 2000


def rows(results: Sequence[Mapping[str, Any]], arms: Sequence[Arm]) -> list[str]:
    """Markdown lines: one row an arm, its mean and spread over the seeds."""
    cells = []
    for arm in arms:
        of = [r for r in results if (r["group"], r["arm"]) == (arm.group, arm.name)]
        if of:
            top1 = [100 * r["top1"] for r in of]
            spread = f"{stdev(top1):.2f}" if len(of) > 1 else "-"
            agree, kl = mean(100 * r["agreement"] for r in of), mean(r["kl"] for r in of)
            cells.append([arm.group, arm.name, str(len(of)), f"{mean(top1):.2f}", spread, f"{agree:.2f}", f"{kl:.4f}"])
    return table(["group", "arm", "seeds", "top-1 %", "std", "agreement %", "KL"], cells)


def orders(folder: Path, claims: Sequence[Claim], seeds: Sequence[int], images: int) -> list[dict[str, Any]]:
    """Each claim with its difference in points, 95 % interval and verdict; claims without both arms are left out."""
    found = []
    for claim in claims:
        pairs = [(_right(folder, claim.better, s, images), _right(folder, claim.worse, s, images)) for s in seeds]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known:
            continue
        difference = np.mean([a.astype(np.float64) - b for a, b in known], axis=0)
        low, high = interval(difference)
        verdict = "holds" if low > 0 else "fails" if high < 0 else "undecided"
        found.append(
            {"claim": claim.text, "seeds": len(known), "points": 100 * float(difference.mean()),
             "low": 100 * low, "high": 100 * high, "verdict": verdict}
        )  # fmt: skip
    return found


def order_rows(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines of `orders`."""
    cells = [
        [f["claim"], str(f["seeds"]), f"{f['points']:+.2f}", f"{f['low']:+.2f} to {f['high']:+.2f}", f["verdict"]]
        for f in found
    ]
    return table(["claim", "seeds", "points", "95 % interval", "verdict"], cells)


def interval(difference: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of difference[images]."""
    rng = np.random.default_rng(seed)
    means = [float(difference[rng.integers(0, len(difference), len(difference))].mean()) for _ in range(DRAWS)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def draw(results: Sequence[Mapping[str, Any]], arms: Sequence[Arm], path: Path) -> None:
    """One panel a group: each arm's seeds as points, their mean as a bar. Needs matplotlib."""
    from matplotlib.figure import Figure

    groups = [g for g in GROUPS if any(r["group"] == g for r in results)]
    figure = Figure(figsize=(5 * len(groups), 4.5), layout="constrained")
    for place, group in enumerate(groups, 1):
        axes = figure.add_subplot(1, len(groups), place, title=group, xlabel="top-1 %")
        names = [arm.name for arm in arms if arm.group == group and any(_is(r, arm) for r in results)]
        for y, name in enumerate(reversed(names)):
            top1 = [100 * r["top1"] for r in results if (r["group"], r["arm"]) == (group, name)]
            axes.barh(y, mean(top1), color="#9bb8d3")
            axes.plot(top1, [y] * len(top1), "k.", markersize=4)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        every = [100 * r["top1"] for r in results if r["group"] == group]
        axes.set_xlim(max(0, min(every) - 2), max(every) + 1)
    figure.savefig(path)


def _is(result: Mapping[str, Any], arm: Arm) -> bool:
    return (result["group"], result["arm"]) == (arm.group, arm.name)


def _right(folder: Path, key: str, seed: int, images: int) -> NDArray[np.uint8] | None:
    path = folder / f"{key}.{seed}.npy"
    return np.unpackbits(np.load(path))[:images] if path.exists() else None
