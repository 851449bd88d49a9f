"""A runtime (TensorRT, onnxruntime) in a process of its own, so that its crash is a finding and not ours.

A worker is a module of this package with a `main()` that calls `serve`: it reads one JSON request from argv[1] and
writes one JSON answer into the file which the request names, again and again as it gets on: what it had found is there
however it ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The child gets this process's import path, so that it finds this package however it was put there.
_START = (
    "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); "
    "from importlib import import_module; import_module(sys.argv.pop(1)).main()"
)


@dataclass(frozen=True)
class Reply:
    """What a worker left.

    Attributes:
        answer: its last answer; empty when it gave none.
        end: how it ended, in words that follow "it": "ended with status 0", "crashed with SIGSEGV".
        log: the file with all that it and its libraries printed.
        seconds: wall time, start of the process included.
    """

    answer: dict[str, Any]
    end: str
    log: Path
    seconds: float

    def lines(self) -> Iterator[str]:
        """The printed lines that are not empty, one by one: a verbose builder prints hundreds of megabytes."""
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            yield from filter(None, map(str.strip, lines))

    def said(self) -> list[str]:
        """The same, all together."""
        return list(self.lines())


def ask(module: str, request: Mapping[str, Any], scratch: Path, timeout: float | None) -> Reply:
    """Run `module` on `request` (its "answer" is filled in here) with files in `scratch`; `timeout` in seconds."""
    began = time.perf_counter()
    answer, log = scratch / "answer.json", scratch / "log.txt"
    words = json.dumps({**request, "answer": str(answer)})
    with log.open("wb") as printed:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _START, os.pathsep.join(sys.path), module, words],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
            end = _end(done.returncode)
        except subprocess.TimeoutExpired:
            end = f"was stopped after {timeout:g} s"
    found = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}
    return Reply(found, end, log, time.perf_counter() - began)


def serve(work: Callable[[Any], Iterable[Mapping[str, object]]]) -> None:
    """The worker's side: answer the request in argv[1] with what `work` yields; the last answer counts.

    The request's "site", where it names a folder, goes to the start of sys.path: the harness for machines with no GPU.
    """
    request = json.loads(sys.argv[1])
    if request["site"]:
        sys.path.insert(0, request["site"])
    for answer in work(request):
        Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _end(code: int) -> str:
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
