"""A table of measured numbers, and the commands that it is made with."""

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpusq_onnx.report.markdown import table

PREPROCESS = ("--resize", "248", "--crop", "224", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
"""As the ImageNet models were trained."""
STRETCHED = ("--fit", "stretch", "--mean", "0", "--std", "1")
"""As the COCO detector was."""


@dataclass
class Table:
    """Rows of text under a title; the same numbers as values go into the JSON file."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def add(self, cells: list[str], **record: Any) -> None:
        """One row, and its numbers."""
        assert len(cells) == len(self.columns)
        self.rows.append(cells)
        self.records.append(record)

    def publish(self, folder: Path, name: str) -> None:
        """Print the table; write NAME.md and NAME.json."""
        text = "\n".join([f"# {self.title}", "", *table(self.columns, self.rows)]) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        (folder / f"{name}.json").write_text(json.dumps(self.records, indent=2) + "\n", encoding="utf-8")
        print(f"\n\n{text}", flush=True)


def gpusq(*arguments: str, ends: tuple[int, ...] = (0,)) -> tuple[dict[str, Any], float]:
    """Run one command line with `--json -`, which must end with one of `ends`; returns its document and its seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "gpusq_onnx", *arguments, "--quiet", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    assert done.returncode in ends, f"gpusq-onnx {shlex.join(arguments)} ended with {done.returncode}:\n{done.stderr}"
    document: dict[str, Any] = json.loads(done.stdout)
    return document, seconds


def polygraphy_sparse(model: Path) -> set[str]:
    """The tensors that `polygraphy inspect sparsity` calls sparse."""
    command = [str(Path(sys.executable).with_name("polygraphy")), "inspect", "sparsity", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return set(re.findall(r"Found sparse tensor: (\S+)", done.stdout))


def planned(report: dict[str, Any], decision: str) -> set[str]:
    """The tensors of an apply report that met a decision."""
    return {row["tensor"] for step in report["steps"] for row in step["rows"] if row["decision"] == decision}


def sparse_weights(inspection: dict[str, Any]) -> set[str]:
    """The tensors that our own inspect calls 2:4."""
    return {weight["name"] for weight in inspection["weights"] if "2:4" in weight["patterns"]}


def assert_24(report: dict[str, Any], inspection: dict[str, Any], by_polygraphy: set[str] | None) -> None:
    """Every weight planned for pruning is 2:4 by our inspect and, where it was asked, by Polygraphy."""
    pruned = planned(report, "prune")
    assert pruned
    assert pruned <= sparse_weights(inspection)
    if by_polygraphy is not None:
        assert pruned <= by_polygraphy, sorted(pruned - by_polygraphy)


def said(verdict: dict[str, Any]) -> str:
    """A TensorRT parser's verdict in a word."""
    return "built" if verdict["built"] else "parsed" if verdict["ok"] else "REFUSED"


def short(arguments: tuple[str, ...], shared: Path) -> str:
    """A command as a reader can repeat it: the shared folder as ../shared, scratch files by name."""
    words = [w.replace(str(shared), "../shared") if str(shared) in w else w for w in arguments]
    return f"gpusq-onnx {shlex.join(Path(w).name if w.startswith('/') else w for w in words)}"
