"""Wheels that were carried to a machine without a registry, into an environment on top of the one that is there.

    python -m tools.gpu.install --wheels out/wheels --into out/gpu/work/venv

Joins the parts that `tools.gpu.wheels` split, and installs all with pip, from that folder alone. The environment sees
the packages of the interpreter that runs this, also where that is an environment itself: `--system-site-packages`
would show those of the interpreter beneath it. A file of which a part has not come yet is left for the next call.
"""

from __future__ import annotations

import argparse
import re
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PART = re.compile(r"(?P<wheel>.+\.whl)\.(?P<number>\d+)of(?P<count>\d+)$")


def joined(folder: Path, into: Path) -> tuple[list[Path], list[str]]:
    """The whole wheels in `folder` and below it, parts joined in `into`; and the names of those that lack a part."""
    wheels = sorted(folder.rglob("*.whl"))
    parts: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for path in sorted(folder.rglob("*.whl.*")):
        if found := PART.fullmatch(path.name):
            parts.setdefault(found["wheel"], {})[int(found["number"])] = path
            counts[found["wheel"]] = int(found["count"])
    lacking = []
    for name, pieces in parts.items():
        if len(pieces) < counts[name]:
            lacking.append(f"{name}: {len(pieces)} of {counts[name]} parts")
            continue
        into.mkdir(parents=True, exist_ok=True)
        with (into / name).open("wb") as file:
            for number in sorted(pieces):
                file.write(pieces[number].read_bytes())
        wheels.append(into / name)
    return wheels, lacking


def environment(folder: Path) -> Path:
    """The interpreter of an environment that sees the packages of this one; made where it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, system_site_packages=True, with_pip=False, symlinks=True)
    seen = [path for path in [*site.getsitepackages(), sysconfig.get_path("purelib")] if Path(path).is_dir()]
    (packages(folder) / "beneath.pth").write_text("\n".join(dict.fromkeys(seen)) + "\n", encoding="utf-8")
    return python


def packages(folder: Path) -> Path:
    """Where the packages of an environment lie."""
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def newer_cusparselt(folder: Path) -> Path | None:
    """The cuSPARSELt of an environment, None where none was carried."""
    return next(iter(sorted(packages(folder).rglob("libcusparseLt.so.0"))), None)


def main() -> int:
    """Join, make the environment, install, print what was installed and what lacks a part."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.install", description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, required=True, help="the folder that was carried")
    parser.add_argument("--into", type=Path, required=True, help="the environment")
    options = parser.parse_args()
    wheels, lacking = joined(options.wheels, options.into.with_name("joined"))
    python = environment(options.into)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--quiet"]
    if wheels:
        local = ["--no-index", "--no-deps", "--ignore-installed", "--no-compile"]
        subprocess.run([*pip, *local, *map(str, wheels)], check=True)
    print("\n".join([f"installed {len(wheels)}: {' '.join(wheel.name.split('-')[0] for wheel in wheels)}", *lacking]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
