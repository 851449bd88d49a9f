"""The five tasks of docs/tasks.md as somebody new does them: a fresh clone, its own environment, timed.

python -m tools.digits.newcomer    prints the table that the page has; minutes, wants pip's index

Each command of a `console` block is a process whose exit code must be 0, or what the page's next `$ echo $?` shows.
Times are wall clock and CPU (user and system, of the command and its children). Limits: POSIX.
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
_PART = re.compile(r"^## (.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(bash|console|python)(?: title=\"([^\"\n]*)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def main() -> None:
    """Clone, install and follow the page."""
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").partition("## On real data")[0]
    titles = ["Clone and install", *_PART.findall(page)]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        venv = clone / ".venv"  # which the page makes
        paths = {"PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(venv)}
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | paths
        print("| task | wall | CPU |\n|---|---|---|")
        for number, (title, part) in enumerate(zip(titles, _PART.split(page)[::2], strict=True)):
            wall, cpu = time.perf_counter(), _cpu()
            if number == 0:
                _run(f"git clone --quiet {ROOT} {clone}", Path(folder), environment)
            _follow(part, clone if number == 0 else clone / "desk", environment)
            print(f"| {title} | {time.perf_counter() - wall:.0f} s | {_cpu() - cpu:.0f} s |", flush=True)


def _follow(part: str, folder: Path, environment: dict[str, str]) -> None:
    for language, title, body in _BLOCK.findall(part):
        if language == "python":
            (folder / title).write_text(body, encoding="utf-8")
        elif language == "bash":
            _run(f"set -e\n{body}", folder, environment)
        else:
            lines = body.splitlines()
            for place, line in enumerate(lines):
                if line.startswith("$ ") and line != "$ echo $?":
                    _run(line[2:], folder, environment, _code_after(lines[place + 1 :]))


def _code_after(lines: list[str]) -> int:
    """What the page says of the exit code of the command that these lines follow."""
    following = next((place for place, line in enumerate(lines) if line.startswith("$ ")), None)
    asked = following is not None and lines[following] == "$ echo $?"
    return int(lines[following + 1]) if asked and following is not None else 0


def _run(command: str, folder: Path, environment: dict[str, str], code: int = 0) -> None:
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != code:
        raise SystemExit(f"$ {command}\n{done.stdout}{done.stderr}exit code {done.returncode}, {code} expected")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
