"""Errors of the operating system: where, what was expected, and what to do, in the user's names.

That nothing is left of the results is in `test_cut_short` and `test_fault_matrix`.
"""

import errno
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.error import URLError

import pytest
from command_line import MODEL, ROOT, call, fresh_model

from gpusq_onnx.cli import journal
from gpusq_onnx.cli.failures import explain
from gpusq_onnx.files import staged
from gpusq_onnx.scratch import PREFIX, Scratch

MADE = ("apply", "-q", "-p", "prune24{method=magnitude}")
FULL = Path("/dev/full")


def said(number: int, filename: str | None = None) -> str:
    """What is printed for one error."""
    named = () if filename is None else (filename,)
    text, code = explain(OSError(number, os.strerror(number), *named))
    assert code == 5
    return text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some room"),
        (errno.EDQUOT, "free some room"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "name another place"),
        (errno.EACCES, "give this user the permission"),
        (errno.ENOENT, "check the path"),
    ],
)
def test_each_kind_has_a_place_and_a_next_step(number: int, words: str) -> None:
    text = said(number, "results/small.onnx")
    assert "\n  where: results/small.onnx\n" in text
    assert f"\n  found: {os.strerror(number)}\n" in text
    assert words in text.partition("\n  next: ")[2]


def test_one_of_no_known_kind_is_in_the_systems_words() -> None:
    assert said(errno.EIO, "m.onnx").splitlines()[0] == f"environment lacks something: {os.strerror(errno.EIO)}"


def test_an_error_without_a_number_says_where_to_look() -> None:
    """NumPy raises these where a disk is full."""
    text, code = explain(OSError("8192 requested and 100 written"))
    assert code == 5
    assert "8192 requested and 100 written" in text and "whether the disk is full" in text


def test_no_folder_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", _none_usable)
    with pytest.raises(FileNotFoundError) as caught:
        Scratch()
    text, _ = explain(caught.value)
    assert "no folder for temporary files" in text and "TMPDIR" in text


def _none_usable() -> str:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


def test_a_handle_is_no_place() -> None:
    text, code = explain(OSError(errno.EIO, os.strerror(errno.EIO), 7))
    assert code == 5 and "where" not in text


def test_a_network_that_fails_is_no_full_disk() -> None:
    assert "disk" not in explain(URLError("no route"))[0]


def test_a_result_has_its_own_name_and_not_that_of_its_scratch_folder() -> None:
    assert "\n  where: results/small.onnx\n" in said(errno.EACCES, f"results/{PREFIX}abc1/small.onnx")
    assert "\n  where: results\n" in said(errno.EACCES, f"results/{PREFIX}abc1")


def test_a_temporary_file_is_called_one() -> None:
    text = said(errno.ENOSPC, f"{tempfile.gettempdir()}/{PREFIX}abc1/activations/0.raw")
    assert f"\n  where: temporary files, in {tempfile.gettempdir()}\n" in text
    assert "TMPDIR" in text.partition("\n  next: ")[2]


def _full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a folder, and all in it, lie on a disk without room."""
    real = os.statvfs

    def statvfs(path: Path) -> os.statvfs_result:
        found = list(real(path))
        if Path(path).is_relative_to(folder):
            found[4] = 0
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)


@pytest.mark.parametrize("full", ["results", "scratch"])
def test_of_results_and_scratch_the_one_without_room_is_named(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`write` names no file."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    _full(tmp_path / full, monkeypatch)

    def write() -> None:
        with staged() as results:
            results.place(tmp_path / "results" / "m.onnx").write_bytes(b"half")
            with Scratch():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    place = {"results": tmp_path / "results" / "m.onnx", "scratch": f"temporary files, in {tmp_path / 'scratch'}"}[full]
    assert f"\n  where: {place}\n" in explain(caught.value)[0]


def test_an_output_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    model = fresh_model(tmp_path)
    outcome = call(*MADE, "-o", "/proc/x.onnx", model)
    assert outcome.code == 5
    assert "'x.onnx' cannot be written" in outcome.err and "where: /proc\n" in outcome.err
    assert PREFIX not in outcome.err


def _alone(*words: str | Path, limit: int | None = None, stdout: Path | None = None) -> str:
    """A command in a process of its own; what it says on stderr."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "gpusq_onnx", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with open(stdout or os.devnull, "w") as out:
        done = subprocess.run(
            command, env=environment, stdout=out, stderr=subprocess.PIPE, text=True, preexec_fn=limited, check=False
        )
    assert done.returncode == 5, done.stderr
    return done.stderr


def test_a_file_that_may_not_grow_is_named(tmp_path: Path) -> None:
    err = _alone(*MADE, "-o", tmp_path / "small.onnx", MODEL, limit=200_000)
    assert f"where: {tmp_path / 'small.onnx'}\n" in err and "ulimit -f" in err


@pytest.mark.parametrize("words", [("--help",), ("inspect", MODEL)])
def test_a_full_stdout_is_called_that(words: tuple[str | Path, ...]) -> None:
    if not FULL.exists():
        pytest.skip("there is no /dev/full here")
    assert "where: standard output\n" in _alone(*words, stdout=FULL)


def test_a_log_that_takes_no_more_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that the error cannot be written there either does not hide it."""
    if not FULL.exists():
        pytest.skip("there is no /dev/full here")
    begin = journal.Journal.__init__

    def then_full(self: journal.Journal, path: Path) -> None:
        begin(self, path)
        self._path = FULL

    monkeypatch.setattr(journal.Journal, "__init__", then_full)
    outcome = call("--log-file", tmp_path / "log.txt", "plan", "-p", "prune24", fresh_model(tmp_path))
    assert outcome.code == 5
    assert "the disk is full" in outcome.err and "where: --log-file" in outcome.err


def test_a_name_that_no_system_takes_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for place, says in ((f"{'a' * 300}.onnx", "give a shorter name"), ("loop/out.onnx", "name the file that is meant")):
        outcome = call("apply", "-p", "prune24{method=magnitude}", "-o", tmp_path / place, MODEL)
        assert outcome.code == 2
        assert "where: " in outcome.err and f"next: {says}" in outcome.err
