"""A disk that fails at any one moment: each verb, at each file that it opens, renames, makes or brings to the disk.

The moments are counted in a run that nothing disturbs; then the same command is called once for each of them, and that
one operation ends in an error of the operating system. Where the command says 0, all is as in the undisturbed run;
where it does not, it says 5 in words, and nothing has changed.
"""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from command_line import LABELLED, call, fresh_model
from desk import contents

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
VERBS = {
    "plan": "plan -p prune24{method=magnitude} --report new/plan.json model.onnx",
    "inspect": "inspect --json inspect.json model.onnx",
    "check": "check --samples 2 --artefacts kept --report check.json model.onnx model.onnx",
    "pack": "pack -o new/p.gpusq --json p.json pruned.onnx",
    "unpack": "unpack -o new/p.onnx pruned.gpusq",
    "report": "report -o new/page.html r.json",
    "apply": "apply -q -p prune24{method=magnitude} --report r.json -o new/small.onnx model.onnx",
    "apply on a file": "apply -q -p prune24{method=magnitude} --force -o pruned.onnx model.onnx",
}


class Disk:
    """Counts what is written below a folder, and lets one operation fail."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on = str(folder), False
        self.moments: list[str] = []
        self.fails_at, self.error = -1, 0

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: raising here is the operation's own error."""
        if not self.on or event not in ("open", "os.rename", "os.mkdir", "os.link"):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
        if os.path.abspath(path).startswith(self.folder) and (event != "open" or (arguments[2] or 0) & WRITES):
            self._count(f"{event} {os.path.basename(path)}")

    def fsync(self, handle: int) -> None:
        """In the place of os.fsync."""
        if self.on and os.readlink(f"/proc/self/fd/{handle}").startswith(self.folder):
            self._count("fsync")

    def _count(self, moment: str) -> None:
        self.moments.append(moment)
        if len(self.moments) - 1 == self.fails_at:
            raise OSError(self.error, os.strerror(self.error))

    def run(self, line: str, fails_at: int = -1, error: int = 0) -> Any:
        """Call a command with the disk watched."""
        self.moments, self.fails_at, self.error, self.on = [], fails_at, error, True
        try:
            return call(*line.split())
        finally:
            self.on = False


@pytest.fixture(scope="module")
def hooked() -> list[Disk]:
    """The disk of the test that runs. An audit hook cannot be taken away, so there is one for all."""
    current: list[Disk] = []
    sys.addaudithook(lambda event, arguments: current[-1].watch(event, arguments) if current else None)
    return current


@pytest.fixture
def disk(hooked: list[Disk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("which file a handle is of can be asked on Linux only")
    desk = fresh_model(tmp_path).parent
    shutil.copy(LABELLED, desk / "images.npz")
    monkeypatch.chdir(desk)
    made = ("-o", "pruned.onnx", "--report", "r.json")
    assert call("apply", "-q", "-p", "prune24{method=magnitude}", *made, "model.onnx").code == 0
    assert call("pack", "-o", "pruned.gpusq", "pruned.onnx").code == 0
    hooked.append(Disk(desk))
    monkeypatch.setattr(os, "fsync", hooked[-1].fsync)
    yield hooked[-1]
    hooked.clear()


def _lasting(files: dict[str, str]) -> dict[str, str]:
    """Files by digest; of those that say how long it took, the names."""
    return {name: "" if name.endswith((".json", ".md")) else digest for name, digest in files.items()}


def _at_moments(disk: Disk, line: str, moments: slice) -> None:
    desk = Path(disk.folder)
    before = desk.with_name("before")
    shutil.copytree(desk, before)
    assert disk.run(line).code == 0
    wanted, count = contents(desk), disk.moments
    assert count
    for number, error in list(zip(range(len(count)), cycle(ERRORS), strict=False))[moments]:
        shutil.rmtree(desk)
        shutil.copytree(before, desk)
        os.chdir(desk)
        untouched = contents(desk)
        outcome = disk.run(line, number, error)
        shown = f"{count[number]}: {os.strerror(error)}: {outcome.err}"
        assert outcome.code in (0, 5), shown
        found = contents(desk)
        assert found == untouched if outcome.code else _lasting(found) == _lasting(wanted), shown
        assert outcome.code == 0 or os.strerror(error) in outcome.err, shown
        assert "Traceback" not in outcome.err, shown


@pytest.mark.long
@pytest.mark.parametrize("verb", VERBS)
def test_some_moments(verb: str, disk: Disk) -> None:
    _at_moments(disk, VERBS[verb], slice(1, None, 6))


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_moment(verb: str, disk: Disk) -> None:
    _at_moments(disk, VERBS[verb], slice(None))
