"""The numbers of a `check` report, for a GitHub Action: one line of JSON for its outputs, a table for its summary.

    python3 -m tools.action.metrics check.json [--baseline OLD.json]     the table
    python3 -m tools.action.metrics check.json --json                    {"agreement": 0.98, "top1": 0.83, ...}

A baseline is the `check.json` of an earlier run, say of the main branch: the table then has its column, and the change.
Limits: numbers only; names of outputs are left out, so that no text of a model reaches the workflow.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def metrics(report: dict[str, Any]) -> dict[str, float]:
    """By name, what `check` measured of the compressed model; shares are 0 to 1.

    >>> measured = {"top1_agreement": 0.5, "outputs": [{"cosine_mean": 0.9}], "candidate_metrics": {"top1": 0.25}}
    >>> metrics({"comparison": measured})
    {'agreement': 0.5, 'cosine': 0.9, 'top1': 0.25}
    """
    comparison = report["comparison"]
    cosines = [output["cosine_mean"] for output in comparison["outputs"] if output["cosine_mean"] is not None]
    found = {"agreement": comparison["top1_agreement"], "cosine": min(cosines, default=None)}
    found |= comparison.get("candidate_metrics") or {}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def table(report: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """The same beside the original's and a baseline's, as Markdown."""
    original = report["comparison"].get("reference_metrics") or {}
    before = metrics(baseline) if baseline else {}
    columns = ["metric", "original", "compressed", *(["baseline", "change"] if baseline else [])]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name, value in metrics(report).items():
        cells = [name, _number(original.get(name)), _number(value)]
        if baseline:
            change = f"{value - before[name]:+.4g}" if name in before else "-"
            cells += [_number(before.get(name)), change]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    report = json.loads(given.report.read_text(encoding="utf-8"))
    baseline = json.loads(given.baseline.read_text(encoding="utf-8")) if given.baseline else None
    print(json.dumps(metrics(report)) if given.json else table(report, baseline))


if __name__ == "__main__":
    main()
