"""Results all or none, scratch folders that cannot be foreseen or outlived, and signals heard as Ctrl-C is."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import bad_models
import pytest
from command_line import HEARS_SIGNALS, IMAGES, ROOT, call, fresh_model
from desk import contents, unchanged

from gpusq_onnx import files
from gpusq_onnx.scratch import PREFIX, Scratch, sweep


def test_results_get_their_names_together_and_the_last_one_last(tmp_path: Path, monkeypatch) -> None:
    order = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", noted)
    with files.staged() as results:
        for name in ("model", "report", "digest"):
            results.place(tmp_path / name, last=name == "model").write_text(name)
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(PREFIX)] == []
    assert order == ["report", "digest", "model"]
    assert contents(tmp_path).keys() == {"model", "report", "digest"}


@pytest.mark.parametrize("failing", ["report", "digest", "model", "after all"])
@pytest.mark.parametrize("there", [False, True])
def test_where_one_result_cannot_be_named_none_is(failing: str, there: bool, tmp_path: Path, monkeypatch) -> None:
    if there:
        for name in ("model", "report"):
            (tmp_path / name).write_text(f"the old {name}")
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == failing and Path(source).name == failing:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    done = []

    def write() -> None:
        with files.staged() as results:
            for name in ("model", "report", "digest"):
                results.place(tmp_path / name, last=name == "model").write_text(name)
            results.afterwards(lambda: done.append(1))
            results.commit()
            raise ZeroDivisionError

    with unchanged(tmp_path), pytest.raises((OSError, ZeroDivisionError)):
        write()
    assert not done


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_while_data_is_replaced_no_model_lies_beside_it(
    links: bool, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be killed at any moment; so may the disk fail, where second names can be made or cannot."""
    for name in ("data", "model"):
        (tmp_path / name).write_text(f"the old {name}")
    before, real = contents(tmp_path), os.replace

    def watched(source: Path, target: Path) -> None:
        if Path(source).name == Path(target).name == "data":
            assert not (tmp_path / "model").exists()
        if fails and Path(source).name == Path(target).name == "model":
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "replace", watched)
    if not links:
        monkeypatch.setattr(files.os, "link", no_links)
    with pytest.raises(OSError) if fails else nullcontext(), files.staged() as results:
        for name in ("model", "data"):
            results.place(tmp_path / name, last=name == "model").write_text(name)
    assert (contents(tmp_path) == before) is fails
    assert fails or {path.read_text() for path in tmp_path.iterdir()} == {"model", "data"}


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """The names of temporary files could be foreseen from the process id: a link there was written through."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for number in (os.getpid(), os.getpid() + 1):
        (tmp_path / f".made.{number}.tmp").symlink_to(victim)
    (tmp_path / "made").symlink_to(victim)
    with files.atomic_write(tmp_path / "made") as (file,):
        file.write(b"new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "made").read_bytes() == b"new"
    assert not (tmp_path / "made").is_symlink()


def test_two_processes_of_equal_id_do_not_mix(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with files.atomic_write(tmp_path / "made") as (one,), files.atomic_write(tmp_path / "made") as (other,):
        one.write(b"1" * 99999)
        other.write(b"2" * 99999)
    assert set((tmp_path / "made").read_bytes()) == {ord("1")}


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom gpusq_onnx.scratch import Scratch\n"
        f"scratch = Scratch(Path({str(tmp_path)!r}))\nprint(scratch.path, flush=True)\ninput()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        folder = Path(other.stdout.readline().strip())
        (folder / "weights").write_bytes(b"x")
        sweep(tmp_path)
        assert (folder / "weights").exists()
        other.kill()
    with Scratch(tmp_path) as mine:
        assert not folder.exists()
        assert mine.stat().st_mode & 0o777 == 0o700
    assert contents(tmp_path) == {}


def test_a_link_with_our_prefix_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "where").mkdir()
    (tmp_path / "where" / f"{PREFIX}x").symlink_to(tmp_path / "precious")
    sweep(tmp_path / "where")
    assert (tmp_path / "precious").is_dir()
    assert (tmp_path / "where" / f"{PREFIX}x").is_symlink()


@pytest.mark.parametrize("failing", ["document", "digest"])
def test_apply_leaves_no_model_where_its_report_fails(failing: str, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"gpusq_onnx.report.run.{failing}", full)
    model = fresh_model(tmp_path)
    with unchanged(tmp_path):
        outcome = call("apply", model, "-p", "prune24", "--report", tmp_path / "r.json")
    assert outcome.code == 5


@pytest.mark.long
@pytest.mark.parametrize("there", [False, True])
def test_apply_leaves_no_model_where_stdout_takes_nothing(there: bool, tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    if there:
        (model.parent / "model.gpusq.onnx").write_text("yesterday's")
    with unchanged(tmp_path), Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "gpusq_onnx", "apply", "--force", str(model), "-p", "prune24"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=_environment(tmp_path), check=False
        )
    assert done.returncode == 5, done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("words", ["--help", "--version", "passes list", "inspect --json - MODEL", "inspect MODEL"])
def test_a_stdout_that_takes_nothing_is_an_error_of_the_machine(words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpusq_onnx", *words.replace("MODEL", str(fresh_model(tmp_path))).split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=_environment(tmp_path), check=False
        )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("environment lacks something: the disk is full\n  where: standard output\n")


def _environment(tmp_path: Path) -> dict[str, str]:
    """With stdout buffered, as it is by default, whatever this machine says."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.long
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams_are_no_error(closed: str, tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    command = f"{sys.executable} -m gpusq_onnx apply {model} -p prune24 {closed}"
    assert subprocess.run(["bash", "-c", command], env=_environment(tmp_path), check=False).returncode == 0
    assert model.with_name("model.gpusq.onnx").exists()


@pytest.mark.long
def test_an_ascii_terminal_is_no_error(tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    environment = {**_environment(tmp_path), "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"}
    for verb in (
        ["passes", "show", "qdq-int8"],
        ["apply", str(model), "-p", "prune24"],
        ["plan", str(model), "-p", "x×"],
    ):
        command = [sys.executable, "-m", "gpusq_onnx", *verb]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode in (0, 2), done.stderr
        assert "UnicodeEncodeError" not in done.stderr


@pytest.mark.long
def test_onnxruntime_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    model, scratch = fresh_model(tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "gpusq_onnx",
        "apply",
        str(model),
        "-p",
        "qdq-int8",
        "--data",
        str(IMAGES),
        "--samples",
        "2",
    ]
    environment = {**_environment(tmp_path), "TMPDIR": str(scratch), "HOME": str(scratch)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_imports_is_no_traceback(number: signal.Signals, code: int, tmp_path: Path) -> None:
    started = f"{HEARS_SIGNALS}\nimport os, sys, builtins\nreal = builtins.__import__\n" + (
        f"def watched(name, *more, **rest):\n    if name == 'typer': os.kill(os.getpid(), {int(number)})\n"
        "    return real(name, *more, **rest)\n"
        "from gpusq_onnx.cli import main\nbuiltins.__import__ = watched\nsys.exit(main(['passes', 'list']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", started], capture_output=True, text=True, env=_environment(tmp_path), check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "interrupted; no file was left half-written\n")


def test_a_signal_that_is_switched_off_stays_off(tmp_path: Path) -> None:
    """As under `nohup`, and for jobs that a script runs in its background."""
    model = fresh_model(tmp_path)
    code = (
        "import os, signal, sys\nfor n in (signal.SIGHUP, signal.SIGINT): signal.signal(n, signal.SIG_IGN)\n"
        "import gpusq_onnx.graph.io as io\nreal = io.load\n"
        "def load(path):\n    os.kill(os.getpid(), signal.SIGHUP)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(path)\nio.load = load\nfrom gpusq_onnx.cli import main\n"
        f"sys.exit(main(['apply', {str(model)!r}, '-p', 'prune24', '-q']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(tmp_path), check=False
    )
    assert done.returncode == 0, done.stderr
    assert model.with_name("model.gpusq.onnx").exists()


@pytest.mark.long
@pytest.mark.parametrize("stored", ["one file", pytest.param("external data", marks=pytest.mark.slow)])
def test_random_signals_at_random_moments_leave_the_output_whole_or_absent(stored: str, tmp_path: Path) -> None:
    """Kill, TERM, INT and HUP over `apply`: what a killed run leaves, the next one removes."""
    folder, scratch = tmp_path / "work", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    model, report = folder / "model.onnx", folder / "r.json"
    if stored == "one file":
        model.write_bytes(bad_models.MODEL.read_bytes())
    else:
        bad_models.external(model)
    before = contents(folder)
    command = [sys.executable, "-c", f"{HEARS_SIGNALS}\nimport sys; from gpusq_onnx.cli import main; sys.exit(main())"]
    words = [
        "apply",
        str(model),
        "-p",
        "prune24{method=sparsegpt}",
        "--data",
        str(IMAGES),
        "--samples",
        "4",
        "--report",
        str(report),
    ]
    environment = {**_environment(tmp_path), "TMPDIR": str(scratch)}
    began = time.monotonic()
    assert subprocess.run([*command, *words, "-q"], env=environment, check=False).returncode == 0
    took = time.monotonic() - began
    whole = contents(folder)
    dice = random.Random(stored)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        for name in whole.keys() - before.keys():
            (folder / name).unlink(missing_ok=True)
        with subprocess.Popen([*command, *words, "-q"], env=environment, stderr=subprocess.PIPE, text=True) as running:
            time.sleep(dice.uniform(0.3, 1.1) * took)
            running.send_signal(number)
            err = running.communicate(timeout=60)[1]
        assert "Traceback" not in err, err
        left = {name: digest for name, digest in contents(folder).items() if not name.startswith(PREFIX)}
        if "model.gpusq.onnx" in left:
            assert {n: d for n, d in left.items() if n != "r.json" and n != "r.md"}.items() <= whole.items()
            assert json.loads(report.read_text())["output"]
        elif number != signal.SIGKILL:
            assert contents(folder) == before
    assert subprocess.run([*command, *words, "-q"], env=environment, check=False).returncode == 0
    assert contents(folder).keys() == whole.keys()
    assert contents(scratch) == {}
