"""Memory, declared sizes and texts from elsewhere: bounded, believed in nothing, and shown as text."""

import json
import sys
from pathlib import Path

import pytest
from command_line import IMAGES, call, fresh_model
from desk import unchanged

from gpusq_onnx.cli.console import json_text
from gpusq_onnx.errors import UsageError, of_the_machine
from gpusq_onnx.report.markdown import assemble, table

EVIL = "a\n::error::b\x1b[31m\u202e|<img>](x)`"


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = fresh_model(tmp_path_factory.mktemp("container"))
    pruned, found = model.with_name("pruned.onnx"), model.with_name("m.gpusq")
    assert call("apply", model, "-p", "prune24", "--data", IMAGES, "--samples", "4", "-o", pruned).code == 0
    assert call("pack", pruned, "-o", found).code == 0
    return found.read_bytes()


@pytest.fixture
def packed(container: bytes, tmp_path: Path) -> Path:
    found = tmp_path / "m.gpusq"
    found.write_bytes(container)
    return found


@pytest.mark.usefixtures("container")  # what `apply` imports is there: 50 MB leave no room for it
@pytest.mark.parametrize(
    ("amount", "code", "says"),
    [
        ("50M", 5, "needs more memory than --max-memory"),
        ("4G", 0, ""),
        ("x", 2, "500M"),
        ("0", 2, "500M"),
        ("9" * 99, 2, ""),
    ],
)
def test_max_memory_refuses_before_any_work(
    amount: str, code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh_model(tmp_path)
    if code:
        monkeypatch.setattr("gpusq_onnx.pipeline.manager.run", lambda *_, **__: pytest.fail("it began to work"))
    outcome = call("apply", model, "-p", "prune24", "--max-memory", amount)
    assert outcome.code == code, outcome.err
    assert says in outcome.err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process below a limit")
@pytest.mark.parametrize("verb", ["inspect", "plan -p prune24", "check", "pack"])
def test_too_little_for_the_libraries_is_said_before_one_of_them_ends_the_process(verb: str, tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    with unchanged(tmp_path):
        outcome = call(*verb.split(), model, *([model] if verb == "check" else []), "--max-memory", "150M")
    assert outcome.code == 5
    assert "the program alone needs more memory than --max-memory allows" in outcome.err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process below a limit")
def test_max_memory_stops_what_would_take_more_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: object) -> None:
        bytearray(8 << 30)

    model = fresh_model(tmp_path)
    monkeypatch.setattr("gpusq_onnx.passes.prune.Prune24.apply", hungry)
    with unchanged(tmp_path):
        outcome = call("apply", model, "-p", "prune24", "--max-memory", "6G")
    assert outcome.code == 5
    assert "not enough memory" in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        "std::bad_alloc",
        "Failed to allocate memory for requested buffer",
        "out of memory",
        "can't start new thread",
        "pthread_create failed, error code: 12 error msg: Cannot allocate memory",
    ],
)
def test_memory_that_ran_out_in_a_library_is_the_machine_s(words: str) -> None:
    wrapped = ValueError("it failed")
    wrapped.__cause__ = RuntimeError(words)
    assert isinstance(of_the_machine(wrapped), MemoryError)
    assert of_the_machine(ValueError("it failed")) is None


def test_a_name_that_is_too_long_is_usage(tmp_path: Path) -> None:
    outcome = call("apply", tmp_path / ("x" * 5000), "-p", "prune24")
    assert (outcome.code, outcome.out) == (2, "")


def test_an_error_shows_names_as_text() -> None:
    text = str(UsageError(f"no such thing: {EVIL}", found=f"x\n  next: rm -rf\n{EVIL}", hint="look"))
    assert text.isascii() or "\u202e" not in text
    assert "\x1b" not in text
    assert [line[:8] for line in text.splitlines() if line.startswith("  next")] == ["  next: "]
    assert not [line for line in text.splitlines() if line.startswith("::")]


def test_a_digest_shows_names_as_text() -> None:
    text = assemble([f"- input: {EVIL}", "", *table(["name"], [[EVIL]])])
    assert len(text.splitlines()) == 5
    assert "\x1b" not in text and "\\<img>" in text and "]\\(x)" in text and "\\|" in text


def test_json_is_for_any_reader() -> None:
    document = {"name": EVIL, "path": "caf\udce9", "plain": "é × ≥"}
    text = json_text(document)
    assert json.loads(text) == document
    assert "\x1b" not in text and "\u202e" not in text and "\udce9" not in text and "é × ≥" in text
    text.encode()


def _edit(packed: Path, edit) -> None:
    data = packed.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    contents = json.loads(header["__metadata__"]["gpusq_onnx"])
    edit(contents)
    header["__metadata__"]["gpusq_onnx"] = json.dumps(contents)
    text = json.dumps(header).encode()
    packed.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["files"][0].update(bytes=2**50),
        lambda c: c["weights"][0].update(dims=[2**20, 2**20]),
        lambda c: c["weights"][0].update(dims=[-4, -4]),
        lambda c: c["weights"][0].update(start=2**60),
        lambda c: c["weights"][0].update(start=-1),
        lambda c: c["weights"][0].update(file=7),
        lambda c: c["weights"][0].update(axis=9),
        lambda c: c["weights"].append(c["weights"][0]),
        lambda c: c["files"].append(c["files"][0]),
        lambda c: c["files"][0].update(name="../x"),
        lambda c: c["files"][0].update(name=".bashrc"),
        lambda c: c["files"][0].update(name="a\nb"),
        lambda c: c["files"].clear(),
    ],
)
def test_unpack_believes_no_declared_size_or_name(edit, packed: Path) -> None:
    _edit(packed, edit)
    with unchanged(packed.parent):
        for more in ([], ["-o", packed.with_name("back.onnx")]):
            outcome = call("unpack", packed, *more)
            assert outcome.code == 3, outcome.err


@pytest.mark.parametrize(
    "text",
    [
        "[" * 99999,
        "1" * 5000,
        '{"steps": 1}',
        '{"engine": 1, "library": 2, "sparsity": 3, "weights": 4, "failures": 5}',
    ],
)
def test_a_report_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with unchanged(tmp_path):
        assert call("report", tmp_path / "r.json").code == 2
