"""The five tasks from the README alone, as somebody new does them: a fresh clone, its own environment, timed.

python -m tools.digits.newcomer    prints the table that docs/tasks.md has; minutes, wants pip's index

The tasks are the headings of docs/tasks.md, which the README has, too. Each `bash` block of theirs is a shell that must
end with 0, each `python` block a process; the next one starts in the folder where the last one ended. Times are wall
clock and CPU (user and system, of the command and its children). Limits: POSIX.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST = "Install"
_PUBLIC = "https://github.com/OWNER/gpusq-onnx"  # what this clone takes the place of
_PART = re.compile(r"^## (.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def parts(page: Path) -> dict[str, str]:
    """The text below each heading of the second level."""
    found = _PART.split(page.read_text(encoding="utf-8"))
    return dict(zip(found[1::2], found[2::2], strict=True))


def tasks() -> dict[str, str]:
    """The README's text for each task, what installs first."""
    readme = parts(ROOT / "README.md")
    titles = [title for title in parts(ROOT / "docs" / "tasks.md") if title != "On real data"]
    return {title: readme[title] for title in [FIRST, *titles]}


def main() -> None:
    """Clone, install and follow the README."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        venv = folder / "gpusq-onnx" / ".venv"  # which the README makes
        paths = {"PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(venv)}
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | paths
        print("| task | wall | CPU |\n|---|---|---|")
        for title, text in tasks().items():
            wall, cpu = time.perf_counter(), _cpu()
            for language, body in _BLOCK.findall(text.replace(_PUBLIC, f"{ROOT} gpusq-onnx")):
                command = f"set -e\n{body}pwd" if language == "bash" else f"set -e\npython - <<'END'\n{body}END\npwd"
                folder = Path(_run(command, folder, environment).splitlines()[-1])
            print(f"| {title} | {time.perf_counter() - wall:.0f} s | {_cpu() - cpu:.0f} s |", flush=True)


def _run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """What the command prints. Raises SystemExit where it fails."""
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"$ {command}\n{done.stdout}{done.stderr}exit code {done.returncode}")
    return done.stdout


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
