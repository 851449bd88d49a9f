"""The wheels that a bare GPU machine lacks, for its Python, downloaded here and cut into folders that can travel.

    python -m tools.gpu.wheels [--into out/wheels] [--most 60] [--list]

What is wanted is not written down: it is the closure of the project's requirements, of accelerate and pytest, at
the versions of constraints.txt, without what such a machine has (PyTorch with Triton, onnx, onnxruntime,
timm, numpy, and what these bring of their own). And cuSPARSELt, newer than the one that PyTorch 2.11 pins. A folder
holds at most `--most` MB; a larger wheel is split into NAME.whl.1of3, …, which `tools.gpu.install` joins.

Needs pip, the registry, Python 3.11, and an environment of constraints.txt, whose metadata tells what requires what.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.zoo.exports import ROOT

BESIDES = ("accelerate", "pytest")
THERE = frozenset("torch triton onnx onnxruntime onnxruntime-gpu timm numpy ml-dtypes protobuf setuptools".split())
NEWER = ("nvidia-cusparselt-cu13==0.10.0",)
PYTHON = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux", "extra": ""}
PYTHON |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
PYTHON |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_12_x86_64", "any")
MB = 1_000_000


def pins() -> dict[str, str]:
    """Version by canonical name, as constraints.txt says."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): number.strip() for name, number in found}


def wanted() -> list[str]:
    """What the project and its GPU tests require themselves: pyproject.toml, and `BESIDES`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*_names(project["dependencies"]), *BESIDES]


def closure(names: Iterable[str], there: frozenset[str] = THERE) -> list[str]:
    """Canonical names of all that these need on the GPU machine's Python, themselves included, without `there`."""
    found: set[str] = set()
    ahead = [canonicalize_name(name) for name in names]
    while ahead:
        name = ahead.pop()
        if name not in found and name not in there:
            found.add(name)
            ahead += _required(name)
    return sorted(found)


def _required(name: str) -> list[str]:
    try:
        return _names(requires(name) or [])
    except PackageNotFoundError:
        return []  # for another system or Python than this one: nothing more is known of it


def _names(lines: Iterable[str]) -> list[str]:
    """Canonical names of the requirements that hold on the GPU machine."""
    found = [Requirement(line) for line in lines]
    return [canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate(PYTHON)]


def download(names: Iterable[str], into: Path) -> None:
    """One wheel for each `name==version`, for the GPU machine. Raises subprocess.CalledProcessError."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", *target, *platforms, "--dest", str(into), *names]
    subprocess.run(command, check=True)


def parts(size: int, most: int) -> list[tuple[int, int]]:
    """(offset, bytes) of the pieces of a file that is not empty, each at most `most`, nearly equal."""
    piece = -(-size // -(-size // most))
    return [(start, min(piece, size - start)) for start in range(0, size, piece)]


def pack(wheels: Iterable[Path], into: Path, most: int) -> dict[str, list[str]]:
    """Write the wheels into folders 1, 2, … of at most `most` bytes; returns the names by folder."""
    pieces: list[tuple[str, bytes]] = []
    for wheel in wheels:
        content = wheel.read_bytes()
        cut = parts(len(content), most)
        for number, (start, size) in enumerate(cut, 1):
            name = wheel.name if len(cut) == 1 else f"{wheel.name}.{number}of{len(cut)}"
            pieces.append((name, content[start : start + size]))
    folders: list[list[tuple[str, bytes]]] = []
    for name, content in sorted(pieces, key=lambda piece: (".whl." in piece[0], piece[0])):  # whole ones first
        fits = (f for f in folders if sum(len(c) for _, c in f) + len(content) <= most)
        folder = next(fits, None)
        if folder is None:
            folders.append(folder := [])
        folder.append((name, content))
    for number, folder in enumerate(folders, 1):
        (into / str(number)).mkdir(parents=True, exist_ok=True)
        for name, content in folder:
            (into / str(number) / name).write_bytes(content)
    return {str(number): [name for name, _ in folder] for number, folder in enumerate(folders, 1)}


def listing(folder: Path) -> list[str]:
    """A line a file in the numbered folders of `folder`, and a line a folder with its sum, in MB."""
    lines = []
    for number in sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)):
        files = sorted(number.iterdir())
        lines.append(f"{number.name}/ {sum(file.stat().st_size for file in files) / MB:.1f} MB")
        lines += [f"  {file.stat().st_size / MB:8.3f} MB  {file.name}" for file in files]
    return lines


def pinned(names: Iterable[str], versions: Mapping[str, str]) -> list[str]:
    """`name==version` of each. Raises ValueError for names that constraints.txt does not pin."""
    names = list(names)
    if loose := [name for name in names if name not in versions]:
        raise ValueError(f"constraints.txt has no version of {', '.join(loose)}")
    return [f"{name}=={versions[name]}" for name in names]


def main() -> int:
    """Download, cut, print the sizes."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.wheels", description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=Path("out/wheels"))
    parser.add_argument("--most", type=int, default=60, help="MB a folder")
    parser.add_argument("--list", action="store_true", help="print what would be downloaded, and end")
    options = parser.parse_args()
    names = [*pinned(closure(wanted()), pins()), *NEWER]
    if options.list:
        print("\n".join(names))
        return 0
    if options.into.exists() and any(options.into.iterdir()):
        print(f"{options.into} is not empty: remove it, or give another --into", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpusq-wheels-") as scratch:
        download(names, Path(scratch))
        wheels = sorted(Path(scratch).glob("*.whl"), key=lambda path: re.sub(r"\W", "-", path.name.lower()))
        pack(wheels, options.into, options.most * MB)
    print("\n".join(listing(options.into)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
