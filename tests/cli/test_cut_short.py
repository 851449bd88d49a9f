"""A full disk and Ctrl-C leave nothing: real limits and real signals on real processes, at several moments."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import bad_models
import pytest
from command_line import HEARS_SIGNALS, ROOT, fresh_model
from desk import contents, unchanged

pytestmark = pytest.mark.long

PIPELINE = "prune24{method=sparsegpt},qdq-int8"
SCRATCH = "TMPDIR"  # where tempfile puts activations and tapped models


def start(model: Path, scratch: Path, *words: str, before: str = "") -> subprocess.Popen[str]:
    """`apply` in a process of its own, with its own scratch folder; `before` is code that runs first."""
    code = f"{HEARS_SIGNALS}\n{before}\nimport sys\nfrom gpusq_onnx.cli import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, "apply", str(model), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), SCRATCH: str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


SLOW_LOADER = """
import time
import numpy as np


def load_data():
    for number in range(1000):
        if number == 6:
            open({flag!r}, "w").close()
        if number > 6:
            time.sleep(0.05)
        yield {{"pixel_values": np.full((1, 3, 32, 32), number % 7, np.float32)}}
"""


@pytest.mark.parametrize("pipeline", ["qdq-int8", PIPELINE])
def test_ctrl_c_in_the_middle_of_calibration_leaves_nothing(pipeline: str, tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    scratch, flag, loader = tmp_path / "scratch", tmp_path / "flag", tmp_path / "loader.py"
    scratch.mkdir()
    loader.write_text(SLOW_LOADER.format(flag=str(flag)))
    with unchanged(model.parent, scratch):
        with start(model, scratch, "-p", pipeline, "--data", str(loader)) as running:
            _wait_for(flag)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=30)
        assert (running.returncode, out) == (130, ""), err
    assert "interrupted; no file was left half-written" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("moment", ["io.write_model", "io._write_data", "files.os.fsync", "files.os.replace"])
def test_ctrl_c_while_the_model_is_written_leaves_nothing(moment: str, tmp_path: Path) -> None:
    """The signal comes at the named call; of two files (external data) neither may stay."""
    folder, scratch = tmp_path / "work", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    model = folder / "model.onnx"
    bad_models.external(model)
    before = f"""
import os, signal
import gpusq_onnx.files as files
import gpusq_onnx.graph.io as io
real = {moment}
def interrupted(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return real(*args, **kwargs)
{moment} = interrupted
"""
    with unchanged(folder, scratch):
        with start(model, scratch, "-p", "prune24{method=magnitude}", before=before) as running:
            out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (130, ""), err


def test_a_second_file_that_fails_takes_the_first_one_back(tmp_path: Path) -> None:
    folder, scratch = tmp_path / "work", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    model = folder / "model.onnx"
    bad_models.external(model)
    before = """
import os
real = os.replace
def full(source, target):
    if str(target).endswith("gpusq.onnx"):
        raise OSError(28, "No space left on device")
    return real(source, target)
os.replace = full
"""
    with unchanged(folder):
        with start(model, scratch, "-p", "prune24{method=magnitude}", before=before) as running:
            out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (5, ""), err
    assert "No space left on device" in err


@pytest.mark.parametrize("stored", ["one file", "external data"])
def test_a_file_system_that_takes_no_more_leaves_nothing(stored: str, tmp_path: Path) -> None:
    """The kernel refuses every byte past 200 kB of a file: less than the model, more than all else that is written."""
    folder, scratch = tmp_path / "work", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    model = folder / "model.onnx"
    if stored == "one file":
        model.write_bytes(bad_models.MODEL.read_bytes())
    else:
        bad_models.external(model)
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, {resource.RLIM_INFINITY}))"
    with unchanged(folder, scratch):
        with start(model, scratch, "-p", "prune24{method=magnitude}", before=limit) as running:
            out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (5, ""), err
    assert err.startswith("environment lacks something: ")
    assert "File too large" in err


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file system of 700 kB that holds the model and has no room for a second one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {made.stderr.strip()}")
    try:
        model = disk / "model.onnx"
        model.write_bytes(bad_models.MODEL.read_bytes())
        before = contents(disk)
        with start(model, tmp_path, "-p", "prune24{method=magnitude}") as running:
            out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (5, ""), err
        assert "No space left on device" in err
        assert contents(disk) == before
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_output_that_was_there_stays_whole(tmp_path: Path) -> None:
    folder, scratch = tmp_path / "work", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    model = folder / "model.onnx"
    model.write_bytes(bad_models.MODEL.read_bytes())
    (folder / "model.gpusq.onnx").write_bytes(b"the one from yesterday")
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, {resource.RLIM_INFINITY}))"
    with unchanged(folder, scratch):
        with start(model, scratch, "-p", "prune24", "--force", before=limit) as running:
            running.communicate(timeout=60)
        assert running.returncode == 5


def _wait_for(flag: Path) -> None:
    deadline = time.monotonic() + 60
    while not flag.exists():
        assert time.monotonic() < deadline, "calibration never began"
        time.sleep(0.01)
