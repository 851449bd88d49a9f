"""A command in a process of its own, which a signal meets after a time or at one of its operations on files.

Limits: Linux (/proc), and the functions of atexit are not called.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tools.fuzz.arena import OUT

TMP, SAID = "tmp", "said"  # in the case's folder: the command's temporary folder, and what it printed
_OPERATIONS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "subprocess.Popen")  # of sys.addaudithook
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATIENCE = 5  # seconds that processes may take to die with their parent


class Broken(AssertionError):
    """What must hold does not."""


def ended(words: list[str], folder: Path, moment: Mapping[str, Any]) -> int:
    """Run a command in a process of its own and disturb it: its exit code, negative for the signal it died of."""
    sys.stdout.flush()
    (folder / SAID).write_text("")  # it may be killed before it opens it
    child = os.fork()
    if not child:
        code = 70
        try:
            code = _command(words, folder, moment)
        except BaseException:
            (folder / SAID).write_text(traceback.format_exc())
        finally:
            os._exit(code)
    if "seconds" in moment:
        time.sleep(moment["seconds"])
        os.kill(child, getattr(signal, moment["signal"]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = _processes(child)
    until = time.monotonic() + _PATIENCE
    while left and time.monotonic() < until:  # what is killed takes its moment to end
        time.sleep(0.02)
        left = _processes(child)
    if left:
        raise Broken(f"{moment}: processes outlive it: {left}")
    return code


def _processes(session: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            state, _, _, its_session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(its_session) == session and state != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " ")[:200])
    return found


def _command(words: list[str], folder: Path, moment: Mapping[str, Any]) -> int:
    """In the new process: all of it that a shell would set up, and the command."""
    from gpusq_onnx.cli import main
    from gpusq_onnx.learn.meter import ProgressMeter

    os.setsid()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # before and after the command they end the process
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    os.chdir(folder)
    tempfile.tempdir = str(folder / TMP)
    os.environ["TMPDIR"] = tempfile.tempdir
    said = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdout = sys.stderr = open(said, "w", buffering=1, closefd=False)  # noqa: SIM115 - as long as the process
    os.dup2(said, 1)
    os.dup2(said, 2)
    count = _counted(folder, moment)
    with patch.object(ProgressMeter, "save_now", lambda self, done: True):  # a checkpoint a round, not a minute
        code = main(words)
    gc.collect()  # scratch folders go with their objects; the functions of atexit are those of the process that forked
    if "count" in moment:
        Path(moment["count"]).write_text(str(count()))
    return code


def _counted(folder: Path, moment: Mapping[str, Any]) -> Callable[[], int]:
    """Count operations on files below `folder`, and send the signal at the one that `moment` names."""
    done, at = 0, moment.get("operation", -1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in _OPERATIONS and not (event == "open" and _writes_below(folder, *arguments)):
            return
        done += 1
        if done - 1 == at:
            os.kill(os.getpid(), getattr(signal, moment["signal"]))

    sys.addaudithook(watch)
    return lambda: done


def _writes_below(folder: Path, path: object, mode: object, flags: int | None) -> bool:
    here = os.path.abspath(os.fsdecode(path)) if isinstance(path, (str, bytes)) else ""
    return bool((flags or 0) & _WRITES) and here.startswith((str(folder / OUT), str(folder / TMP)))
