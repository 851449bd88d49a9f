"""Cases run one by one in watched processes, and what must hold of each: no exit code 4, traceback, hang, or leftover.

A process is forked for a few dozen cases, so that a crash, a hang or a leak costs these few and is charged to the case
that it met. Memory is limited, so that a bomb is a finding and not the end of the machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BATCH = 50  # cases a process
MEMORY = 3 << 30  # bytes of data a process may have; a healthy case stays far below
ALLOWED = (0, 1, 2, 3, 5)
OUT = "out"  # the folder inside a case's folder that results go to


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        make: from a generator of random numbers and an empty folder to the words of a command; what the command writes
            goes to the folder OUT in it.
        judge: looks at OUT after a command that ended with exit code 0; says what is wrong with it, or "".
        call: runs the command in the case's folder; its exit code.
        patience: how many times the usual limit of seconds a case may take.
    """

    name: str
    make: Callable[[random.Random, Path], list[str]]
    judge: Callable[[Path, Path], str] = lambda folder, out: ""
    call: Callable[[list[str], Path], int] = lambda words, folder: _command(words)
    patience: int = 1


def _command(words: list[str]) -> int:
    from gpusq_onnx.cli import main

    return main(words)


@dataclass
class Score:
    """What came out: exit codes, and the failures as (seed, what happened, command)."""

    codes: Counter[int] = field(default_factory=Counter)
    failures: list[tuple[int, str, list[str]]] = field(default_factory=list)
    slowest: float = 0.0
    most_memory: int = 0


def run(target: Target, seeds: Sequence[int], *, limit: float, keep: Path | None = None) -> Score:
    """Run `target` for each seed; `limit` is the seconds that a case may take, `keep` where failing cases are kept."""
    score, at = Score(), 0
    with tempfile.TemporaryDirectory(prefix="gpusq-fuzz-") as scratch:
        while at < len(seeds):
            batch = seeds[at : at + BATCH]
            at += _run_batch(target, batch, Path(scratch), limit, score, keep)
    return score


def _run_batch(
    target: Target, seeds: Sequence[int], scratch: Path, limit: float, score: Score, keep: Path | None
) -> int:
    """Run cases in one process until all are done or one ends it; returns how many are done."""
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        ours.close()
        with contextlib.suppress(BaseException):
            _work(target, seeds, scratch, theirs)
        os._exit(0)
    theirs.close()
    done = 0
    with ours, ours.makefile("rb") as answers:
        for answer in _answers(answers, limit * target.patience):
            _note(score, seeds[done], answer, target, scratch, keep)
            ours.send(b"+")  # the next case takes the folder
            done += 1
            if done == len(seeds):
                break
        else:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if done < len(seeds):
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        what = (
            f"no answer within {limit * target.patience:g} s"
            if ended == signal.SIGKILL
            else f"the process ended, signal {ended}"
        )
        _note(score, seeds[done], {"problem": what, "code": -ended, "words": [], "seconds": 0}, target, scratch, keep)
        done += 1
    return done


def _answers(pipe: io.BufferedIOBase, limit: float) -> Iterator[dict]:
    """The child's lines as they come; ends when it is silent for too long, or gone."""
    while select.select([pipe], [], [], limit)[0]:
        line = pipe.readline()
        if not line:
            return
        yield json.loads(line)


def _note(score: Score, seed: int, answer: dict, target: Target, scratch: Path, keep: Path | None) -> None:
    score.codes[answer["code"]] += 1
    score.slowest = max(score.slowest, answer["seconds"])
    score.most_memory = max(score.most_memory, answer.get("memory", 0))
    if answer["problem"]:
        score.failures.append((seed, answer["problem"], answer["words"]))
        if keep is not None:
            with contextlib.suppress(shutil.Error):  # all but pipes and devices, which cannot be copied
                shutil.copytree(scratch / "case", keep / f"{target.name}-{seed}", dirs_exist_ok=True, symlinks=True)


def _work(target: Target, seeds: Sequence[int], scratch: Path, parent: socket.socket) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for seed in seeds:
        parent.sendall(json.dumps(play(target, seed, scratch / "case")).encode() + b"\n")
        parent.recv(1)


def play(target: Target, seed: int, folder: Path) -> dict:
    """One case in this process: its words, exit code, seconds, memory, and what is wrong ("" where nothing is)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder = folder.resolve()
    words = target.make(random.Random(f"{target.name}/{seed}"), folder)
    (folder / OUT).mkdir(exist_ok=True)
    before = _entries(folder)
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()  # models go to stdout as bytes
    began, home, problem = time.perf_counter(), Path.cwd(), ""
    os.chdir(folder)  # relative names that a case makes up stay in it
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = target.call(words, folder)
    except BaseException as error:
        code, problem = 4, f"{type(error).__name__} left main: {error}"
    finally:
        os.chdir(home)
    problem = problem or _problem(code, err.getvalue(), before, _entries(folder) - set(words))
    if not problem and code == 0:
        problem = target.judge(folder, folder / OUT)
    return {
        "words": words,
        "code": code,
        "seconds": time.perf_counter() - began,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "problem": problem,
    }


def _problem(code: int, said: str, before: set[str], after: set[str]) -> str:
    if code not in ALLOWED:
        return f"exit code {code}: {said.strip()[:400]}"
    if "Traceback" in said:
        return f"a traceback: {said.strip()[-400:]}"
    if "not enough memory" in said:
        return f"out of memory: {said.strip()[:200]}"
    left = after - before
    if code not in (0, 1) and left:
        return f"exit code {code} left {sorted(left)[:5]}"
    hidden = [name for name in left if Path(name).name.startswith(".")]
    return f"left {sorted(hidden)[:5]}" if hidden else ""


def _entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
