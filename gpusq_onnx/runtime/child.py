"""A runtime (TensorRT, onnxruntime) in a process of its own, so that its crash is a finding and not ours.

A worker is a module of this package with a `main()` that calls `serve`: for each line of its standard input, a JSON
request, it writes one JSON answer into the file which the request names, again and again as it gets on: what it had
found is there however it ends. It ends with its input. `ask` starts one for one request; a `Worker` waits for more, and
is at hand before the first one: importing onnxruntime takes longer than loading a small model. On Linux a worker dies
with the process that started it, however that ends: a builder does not go on for minutes with nobody to build for.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import IO, Any

# The child gets this process's import path, so that it finds this package however it was put there.
_START = (
    "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); "
    "from importlib import import_module; import_module(sys.argv.pop(1)).main()"
)
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


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


class Worker:
    """A process of `module` that answers one request after the other, until the block ends or it dies."""

    def __init__(self, module: str) -> None:
        self._process = _started(module, subprocess.DEVNULL)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it is idle, or what it does is of no use any more
        self._process.communicate()

    def send(self, request: Mapping[str, Any], scratch: Path) -> None:
        """Hand over a request; what is found goes into `scratch`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already: `receive` tells
            self._process.stdin.write(_words(request, _answer_in(scratch)))
            self._process.stdin.flush()

    def receive(self, scratch: Path) -> tuple[dict[str, Any], str | None]:
        """The last answer to what was sent, and where the worker died of it, how it ended: as in `Reply`."""
        assert self._process.stdout is not None
        try:
            end = None if self._process.stdout.readline() else _end(self._process.wait())
        except BaseException:  # an interrupt: who asked removes the scratch folder, and nobody may write there then
            self._process.kill()
            self._process.wait()
            raise
        return _read(_answer_in(scratch)), end


def ask(module: str, request: Mapping[str, Any], scratch: Path, timeout: float | None) -> Reply:
    """Run `module` on `request` (its "answer" is filled in here) with files in `scratch`; `timeout` in seconds."""
    began = time.perf_counter()
    answer, log = _answer_in(scratch), scratch / "log.txt"
    with log.open("wb") as printed, _started(module, printed) as process:
        try:
            process.communicate(_words(request, answer), timeout)
            end = _end(process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            end = f"was stopped after {timeout:g} s"
        except BaseException:
            process.kill()
            raise
    return Reply(_read(answer), end, log, time.perf_counter() - began)


def serve(work: Callable[[Any], Iterable[Mapping[str, object]]], *modules: str) -> None:
    """The worker's side: answer each request with what `work` yields; the last answer counts.

    `modules` are imported before the first request comes.
    The request's "site", where it names a folder, goes to the start of sys.path: the harness for machines with no GPU.
    """
    _die_with(int(sys.argv[1]))
    # What libraries print goes to the log; the pipe says only when a request is done.
    done = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in modules:
        import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if request["site"]:
            sys.path.insert(0, request["site"])
        for answer in work(request):
            Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
        print("done", file=done, flush=True)


def _die_with(parent: int) -> None:
    """Ask Linux for SIGKILL when the thread that started this process ends; it waits for it, or holds a Worker."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was too late for that
            sys.exit(0)


def _started(module: str, log: IO[bytes] | int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", _START, os.pathsep.join(sys.path), module, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
    )


def _answer_in(scratch: Path) -> Path:
    return scratch / "answer.json"


def _words(request: Mapping[str, Any], answer: Path) -> bytes:
    return json.dumps({**request, "answer": str(answer)}).encode() + b"\n"


def _read(answer: Path) -> dict[str, Any]:
    return json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}


def _end(code: int) -> str:
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
