"""Folders and files of another user: each verb that writes, run by somebody who may not.

The commands run as `nobody`, with one capability (CAP_DAC_READ_SEARCH): this Python and the tests' folder, which others
may not enter, can be read, and nothing can be written that `nobody` could not write.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import LABELLED, ROOT, Outcome, call, fresh_model
from desk import contents

NOBODY = 65534
_AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
MADE = "-q -p prune24{method=magnitude}"
VERBS = {
    "apply": f"apply {MADE} --report there/r.json -o there/m.onnx model.onnx",
    "plan": f"plan {MADE} --report there/r.json model.onnx",
    "inspect": "inspect -q --json there/i.json model.onnx",
    "check": "check -q --samples 2 --artefacts there/kept --report there/c.json model.onnx model.onnx",
    "pack": "pack -q -o there/p.gpusq pruned.onnx",
    "unpack": "unpack -q -o there/p.onnx pruned.gpusq",
    "report": "report -q -o there/page.html r.json",
    "bench": "bench -q --backend onnxruntime --batch 1 --rounds 3 --report there/b.json model.onnx",
    "cam": "cam -q --data images.npz --samples 1 --method gradcam -o there/c.html model.onnx",
    "tune": "tune -q --data images.npz --samples 8 --images 4 --exact 0 --forms int8 --measurements 1 "
    "--budget agreement>=0 -o there/t.toml model.onnx",
    "build": "build -q --batch 2 --cpu-harness {harness} -o there/m.plan model.onnx",
}
SLOW = ("check", "bench", "cam", "tune", "build")  # they are played in full by `make acceptance` only


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of root's, with what the verbs read, and a folder `there`, root's too."""
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    if said := _refused():
        pytest.skip(f"no command can be run as nobody here: {said}")
    folder = fresh_model(tmp_path).parent
    (folder / "images.npz").write_bytes(LABELLED.read_bytes())
    monkeypatch.chdir(folder)
    assert call(*f"apply {MADE} --report r.json -o pruned.onnx model.onnx".split()).code == 0
    assert call(*"pack -q -o pruned.gpusq pruned.onnx".split()).code == 0
    (folder / "there").mkdir()
    (tmp_path / "tmp").mkdir()
    os.chown(tmp_path / "tmp", NOBODY, NOBODY)
    yield folder
    assert contents(tmp_path / "tmp") == {}


def _refused() -> str:
    try:
        done = subprocess.run(
            [*_AS_NOBODY, sys.executable, "-c", "import numpy"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return str(error)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def as_nobody(desk: Path, line: str) -> Outcome:
    """Run a command as `nobody`, whose home and temporary folder are one of his own."""
    mine = str(desk.with_name("tmp"))
    own = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}  # its files are root's
    environment = {**own, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"TMPDIR": mine, "HOME": mine, "XDG_CACHE_HOME": f"{mine}/cache"}
    done = subprocess.run(
        [*_AS_NOBODY, sys.executable, "-m", "gpusq_onnx", *line.split()],
        cwd=desk, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def _refuses(desk: Path, line: str) -> None:
    before = contents(desk)
    outcome = as_nobody(desk, line)
    assert outcome.code == 5, outcome
    assert outcome.err.startswith("environment lacks something: ")
    assert "ermission" in outcome.err and "there" in outcome.err and "Traceback" not in outcome.err
    assert contents(desk) == before


@pytest.mark.long
@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=[pytest.mark.slow] if verb in SLOW else []) for verb in VERBS]
)
def test_another_user_s_folder(verb: str, desk: Path, request: pytest.FixtureRequest) -> None:
    harness = request.getfixturevalue("harness") if verb == "build" else ""
    _refuses(desk, VERBS[verb].replace("{harness}", str(harness)))


@pytest.mark.long
@pytest.mark.parametrize("verb", ["apply", pytest.param("pack", marks=pytest.mark.slow)])
def test_another_user_s_file_in_a_folder_for_all(verb: str, desk: Path) -> None:
    """As in /tmp: everybody may add files, and nobody but their owner may replace them."""
    assert call(*VERBS[verb].split()).code == 0
    os.chmod(desk / "there", 0o1777)
    _refuses(desk, VERBS[verb])


@pytest.mark.long
@pytest.mark.parametrize("verb", ["apply", pytest.param("pack", marks=pytest.mark.slow)])
def test_another_user_s_file_in_a_folder_of_one_s_own_is_replaced(verb: str, desk: Path) -> None:
    assert call(*VERBS[verb].split()).code == 0
    wanted = contents(desk / "there")
    os.chown(desk / "there", NOBODY, NOBODY)
    outcome = as_nobody(desk, VERBS[verb])
    assert outcome.code == 0, outcome
    found = contents(desk / "there")
    assert found.keys() == wanted.keys()
    assert {path.stat().st_uid for path in (desk / "there").iterdir()} == {NOBODY}


@pytest.mark.long
def test_a_file_of_another_user_that_was_replaced_comes_back_where_the_rest_fails(desk: Path) -> None:
    """Of somebody else's file no second name can be made: it is put aside meanwhile."""
    assert call(*VERBS["apply"].split()).code == 0
    os.chown(desk / "there", NOBODY, NOBODY)
    (desk / "there" / "r.md").unlink()
    (desk / "there" / "r.md").mkdir()
    before = contents(desk)
    outcome = as_nobody(desk, VERBS["apply"])
    assert outcome.code in (2, 5), outcome
    assert contents(desk) == before


def test_a_model_that_may_not_be_read(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has read its modules already."""
    os.chmod(desk / "model.onnx", 0o600)
    for above in (desk, *desk.parents):
        if above.stat().st_mode & 0o001 == 0:
            monkeypatch.chdir("/")
    os.chown(desk / "there", NOBODY, NOBODY)
    before = contents(desk)
    handle = os.open(desk, os.O_RDONLY)
    try:
        os.fchdir(handle)
        os.seteuid(NOBODY)
        outcome = call(*VERBS["apply"].split())
    finally:
        os.seteuid(0)
        os.close(handle)
    assert outcome.code in (2, 5), outcome
    assert "ermission denied" in outcome.err and "model.onnx" in outcome.err
    assert contents(desk) == before
