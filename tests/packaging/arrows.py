"""The architecture as data: which package may import which, and which library has which home.

Floors, from the ground (an import goes down or stays on its floor, never up):
    errors, progress, sums, sparsity, quant, tasks · graph, data, runtime · torchgraph, pipeline · calibration, learn,
    report · tuning · passes · workflows · cli

The package itself, `gpusq_onnx/__init__.py`, imports workflows as the command line does, and holds the version for all.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CORE = ROOT / "gpusq_onnx"

FLOORS = {
    "errors": 0, "progress": 0, "text": 0, "parsing": 0, "marks": 0, "interruption": 0, "scratch": 0, "files": 0,
    "wording": 0,
    "sums": 0, "sparsity": 0, "quant": 0, "tasks": 0,
    "graph": 1, "data": 1, "runtime": 1,
    "torchgraph": 2, "pipeline": 2,
    "calibration": 3, "learn": 3, "report": 3,
    "tuning": 4, "passes": 4,
    "workflows": 5,
    "cli": 6, "__main__": 6,
}  # fmt: skip

HOMES = {
    "typer": {"cli"},
    "rich": {"cli"},
    "onnx_graphsurgeon": {"graph"},
    "onnxruntime": {"runtime"},
    "polygraphy": {"runtime"},
    "tensorrt": {"runtime"},
    "tensorrt_rtx": {"runtime"},
    "PIL": {"data"},
    "ml_dtypes": {"quant"},
    "matplotlib": {"report"},
    "faster_coco_eval": {"tasks"},
    "sklearn": {"tasks"},
    "scipy": {"tasks"},
    "threadpoolctl": {"pipeline"},
    "torch": {"torchgraph", "learn", "runtime"},  # runtime.kernels, imported late: sparse torch kernels know no graph
    "triton": {"runtime"},
}
NUMPY_ONLY = {"errors", "sums", "sparsity", "quant", "tasks"}  # but for what has its home there
NEVER = {"passes", "tools", "tests"}  # names of the repository that do not exist once installed


class Import(NamedTuple):
    """One import: the importing module, the imported one (with the name, where it came `from` a package)."""

    source: str
    target: str


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the core, passes and trt_cpu through their symlinks."""
    for path in _walk(CORE):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _walk(folder: Path) -> Iterator[Path]:  # Path.rglob follows links only from Python 3.13 on
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _walk(entry)
        elif entry.suffix == ".py":
            yield entry


def imports(name: str, path: Path) -> Iterator[Import]:
    """Every import of one module, at any depth of its code, under TYPE_CHECKING too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(name, f"{module}.{alias.name}") for alias in node.names)


def area(module: str) -> str:
    """`graph` of `gpusq_onnx.graph.io`; `` of the root package and of its own names."""
    parts = module.split(".")
    return parts[1] if parts[0] == "gpusq_onnx" and len(parts) > 1 and parts[1] in FLOORS else ""


def violations(found: Iterable[Import]) -> list[str]:
    """What breaks a rule above, one sentence each."""
    broken = []
    for source, target in found:
        here, library = area(source), target.split(".")[0]
        floor = FLOORS["cli"] if source == "gpusq_onnx" else FLOORS.get(here, 0)
        if library == "gpusq_onnx":
            there = area(target)
            if FLOORS.get(there, 0) > floor:
                broken.append(
                    f"{source} (floor {floor}) imports {target} (floor {FLOORS[there]}): an arrow that runs up"
                )
            if here in ("workflows", "cli") and there == "passes":
                broken.append(f"{source} imports {target}: a pass is known by its name in the table")
        elif library in NEVER:
            broken.append(f"{source} imports {target}: {library} does not exist once installed")
        elif here not in HOMES.get(library, {here}):
            broken.append(f"{source} imports {target}: the home of {library} is {' and '.join(sorted(HOMES[library]))}")
        elif here in NUMPY_ONLY and library not in {"numpy", "ml_dtypes", *sys.stdlib_module_names, *HOMES}:
            broken.append(f"{source} imports {target}: {here} is numpy only")
    return broken


def circles(found: Iterable[Import]) -> list[str]:
    """Files that import each other in a circle, at any depth of their code: the first such circle, else nothing."""
    names = {name for name, _ in modules()}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for source, target in found:
        while target and target not in names:
            target = target.rpartition(".")[0]
        if target not in ("", "gpusq_onnx", source):
            graph[source].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def cycles(found: Iterable[Import]) -> list[str]:
    """Pairs of areas that import each other."""
    edges = {(area(i.source), area(i.target)) for i in found}
    return sorted(f"{a} ↔ {b}" for a, b in edges if a < b and a and (b, a) in edges)
