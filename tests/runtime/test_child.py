"""Workers: none outlives the process that started it, whatever they are at."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpusq_onnx.runtime import child

ROOT = Path(__file__).parents[2]
# A worker that says where it is, and is then at work for an hour; its module is found in the folder of the test.
BUSY = """
import os, time
from pathlib import Path
from gpusq_onnx.runtime.child import serve

def work(request):
    Path(request["pid"]).write_text(str(os.getpid()))
    time.sleep(3600)
    yield {}

def main():
    serve(work)
"""
PARENT = """
import sys
from pathlib import Path
from gpusq_onnx.runtime.child import Worker, ask

how, scratch = sys.argv[1], Path(sys.argv[2])
request = {"pid": str(scratch / "pid"), "site": None}
if how == "ask":
    ask("busy", request, scratch, None)
else:
    with Worker("busy") as worker:
        worker.send(request, scratch)
        worker.receive(scratch)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for it: the work is finished first")
@pytest.mark.parametrize("how", ["ask", "Worker"])
def test_a_worker_dies_with_a_parent_that_is_killed(how: str, tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, how, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    ) as parent:
        noted = tmp_path / "pid"
        _wait(lambda: noted.exists() and noted.read_text() != "")
        worker = int(noted.read_text())
        assert _alive(worker)
        parent.send_signal(signal.SIGKILL)
    _wait(lambda: not _alive(worker))


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(for_it) -> None:
    deadline = time.monotonic() + 60
    while not for_it():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupted_question_ends_the_worker(tmp_path: Path) -> None:
    """Or it would write its answer into a folder that is being removed."""

    class Interrupted:
        def readline(self) -> bytes:
            raise KeyboardInterrupt

    with child.Worker("gpusq_onnx.runtime.trial_worker") as worker:
        process = worker._process
        stdout, process.stdout = process.stdout, Interrupted()
        worker.send({"site": None}, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            worker.receive(tmp_path)
        assert process.poll() is not None
        process.stdout = stdout
