"""Runs steps one after another, each in a process of its own, and keeps what became of each in one JSON file.

A step ends as

    done        its process ended with 0
    failed      it ended with another code, a signal included; what it wrote until then is kept
    timed out   it took longer than its limit, or than a whole call
    cut         the call's time ended first: the next call runs it again
    skipped     a file that it needs is not there: the next call looks again

A call goes through the steps in their order and leaves out what is done, failed or timed out already, unless its
command has changed, and what would not fit into the time left. A step that was done is run again where the file that
it made has gone and a step that is still to be run needs it: so the JSON file alone is enough to go on elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpusq_onnx.files import atomic_write

SETTLED = ("done", "failed", "timed out")
TAIL = 4000  # characters of a step's output that are kept
PATIENCE = 3.0
WHOLE = 0.9  # share of a call's time that counts as a whole call


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        section: under which heading its result is shown.
        arguments: what the interpreter gets.
        expected: seconds, on an H100.
        needs: files that must be there.
        makes: a file that later steps need.
        result: JSON that it writes, kept in its record.
        environment: variables besides those of this process.
        mark: what else its result depends on; another mark runs it again.
    """

    name: str
    section: str
    arguments: tuple[str, ...]
    expected: float
    needs: tuple[Path, ...] = ()
    makes: Path | None = None
    result: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    mark: str = ""

    @property
    def key(self) -> str:
        """Of its command: a record under another key is that of another step."""
        parts = [*self.arguments, *(f"{name}={value}" for name, value in sorted(self.environment.items())), self.mark]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class Book:
    """The records by step, in a JSON file that is written anew after each. Raises ValueError where it is no such file.

    Attributes:
        machine: facts about the machine of this call; a record names the machine that it was made on.
    """

    def __init__(self, path: Path, machine: Mapping[str, str]) -> None:
        self.path, self.machine = path, dict(machine)
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(found, dict) or (found and set(found) != {"machines", "steps"}):
            raise ValueError(f"{path} holds no results of this tool; give another --out")
        self.machines: list[dict[str, str]] = found.get("machines", [])
        self.steps: dict[str, dict[str, Any]] = found.get("steps", {})

    def put(self, step: Step, record: Mapping[str, Any]) -> None:
        """Add or replace the record of a step."""
        if self.machine not in self.machines:
            self.machines.append(self.machine)
        attributes = {"section": step.section, "key": step.key, "machine": self.machines.index(self.machine)}
        self.steps[step.name] = {**attributes, **record}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as (file,):
            file.write((json.dumps({"machines": self.machines, "steps": self.steps}, indent=1) + "\n").encode())

    def settled(self, step: Step) -> bool:
        """Whether nothing is left to be done for this step."""
        found = self.steps.get(step.name, {})
        return found.get("status") in SETTLED and found.get("key") == step.key


Say = Callable[[str], None]


def carry_out(
    steps: Sequence[Step],
    book: Book,
    *,
    python: Path,
    folder: Path,
    seconds: float,
    say: Say,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Run what is not settled and fits into `seconds`; returns the names of the steps that are left.

    Args:
        python: the interpreter.
        folder: where the steps' whole outputs go, NAME.log.
        patience: times what a step is expected to take, and a minute, that it may take.
    """
    began, left = clock(), []
    folder.mkdir(parents=True, exist_ok=True)
    for step in _wanted(steps, book):
        remaining = seconds - (clock() - began)
        if missing := [str(path) for path in step.needs if not path.exists()]:
            book.put(step, {"status": "skipped", "reason": f"not there: {', '.join(missing)}"})
            left.append(step.name)
            say(f"{step.name}: skipped, not there: {', '.join(missing)}")
            continue
        if remaining < min(step.expected, WHOLE * seconds):
            left.append(step.name)
            continue
        say(f"{step.name} …")
        limit, whole = 60 + patience * step.expected, remaining >= WHOLE * seconds
        record = _run(step, python, folder / f"{step.name}.log", limit, remaining, whole=whole)
        book.put(step, record)
        say(f"{step.name}: {record['status']}, {record['seconds']:.0f} s{_why(record)}")
        if record["status"] == "cut":
            left.append(step.name)
    return left


def _wanted(steps: Sequence[Step], book: Book) -> list[Step]:
    """The steps that are not settled, and before them the makers of the files that they need and that are gone."""
    wanted: list[Step] = []
    gone: set[Path] = set()
    for step in reversed(steps):
        lost = step.makes in gone and book.steps.get(step.name, {}).get("status") == "done"
        if lost or not book.settled(step):
            wanted.append(step)
            gone |= {path for path in step.needs if not path.exists()}
    return wanted[::-1]


def _why(record: Mapping[str, Any]) -> str:
    return f", {record['reason']}" if record["reason"] else ""


def _run(step: Step, python: Path, log: Path, limit: float, remaining: float, *, whole: bool) -> dict[str, Any]:
    if step.result:
        step.result.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **step.environment},
            start_new_session=True,
        )
        try:
            code = process.wait(min(limit, remaining))
            status, reason = ("done", "") if code == 0 else ("failed", _ended(code))
        except subprocess.TimeoutExpired:
            code = None
            is_over = limit <= remaining or whole
            status = "timed out" if is_over else "cut"
            reason = f"ended after {min(limit, remaining):.0f} s"
        finally:
            _end(process)
    record = {"status": status, "reason": reason, "code": code, "seconds": round(time.monotonic() - began, 1)}
    tail = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
    return {**record, "command": list(step.arguments), "tail": tail, **_read(step.result)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it started: compilers, data loaders."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ended(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    try:
        return {"result": json.loads(path.read_text(encoding="utf-8"))}
    except ValueError as error:
        return {"unreadable": f"{path.name}: {error}"}
