"""Where the last of a command's results cannot be written, none is left; memory and blame, for verbs beside `apply`."""

import errno
from pathlib import Path

import pytest
from command_line import IMAGES, call, fresh_model
from desk import unchanged

from gpusq_onnx.cli import console, memory
from gpusq_onnx.graph import io
from gpusq_onnx.workflows import check, inspect, pack, plan, tune  # noqa: F401 - before anything is put in their place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fresh_model(tmp_path)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No JSON can be written."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(console, "write_json", fail)


def test_pack_leaves_nothing_without_its_json(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = model.with_name("pruned.onnx")
    assert call("apply", "-p", "prune24{method=magnitude}", "-o", pruned, model, "-q").code == 0
    words = ("pack", pruned, "-o", model.parent / "new" / "p.gpusq", "--json", model.with_name("p.json"))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, unchanged(model.parent):
        patch.setattr(console, "write_json", fail)
        assert call(*words).code == 5
    assert call(*words).code == 0 and (model.parent / "new" / "p.gpusq").is_file()


@pytest.mark.usefixtures("full_disk")
def test_check_leaves_no_artefacts_without_its_report(model: Path) -> None:
    more = ["--artefacts", model.parent / "kept", "--report", model.with_name("r.json"), "--samples", "2"]
    with unchanged(model.parent):
        assert call("check", model, model, *more).code == 5


@pytest.mark.parametrize("verb", ["plan -p prune24", "inspect", "check", "pack", "tune --at-most 50%"])
def test_memory_is_bounded_for_every_verb(verb: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds while the verb works, and no longer."""
    resource = pytest.importorskip("resource")
    seen: list[int] = []

    def look(*_: object) -> None:
        seen.append(resource.getrlimit(resource.RLIMIT_DATA)[0])
        raise MemoryError

    monkeypatch.setattr(io, "read_proto", look)
    monkeypatch.setattr("gpusq_onnx.workflows.pack.pack_model", look)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    data = ["--data", model.parent] if verb.startswith("tune") else []
    second = [model] if verb == "check" else []
    outcome = call(*verb.split(), model, *second, *data, "--max-memory", "3G")
    assert outcome.code == 5 and "not enough memory" in outcome.err
    assert seen and seen[0] <= memory.parse("3G")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("verb", ["check", "pack", "plan -p prune24", "inspect", "tune --at-most 50%"])
def test_a_fault_on_a_model_that_contradicts_itself_is_the_models(
    verb: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("gpusq_onnx.graph.blame.contradiction", lambda path: "node 'MatMul_3': shapes do not fit")
    for place in (
        "gpusq_onnx.workflows.check._compared",
        "gpusq_onnx.workflows.pack.pack_model",
        "gpusq_onnx.pipeline.opening.analyse",
        "gpusq_onnx.workflows.inspect.inspect_model",
        "gpusq_onnx.workflows.tune.find_groups",
    ):
        monkeypatch.setattr(place, fail)
    second = [model] if verb == "check" else []
    data = ["--data", IMAGES, "--samples", "8"] if verb.startswith("tune") else []
    outcome = call(*verb.split(), model, *second, *data)
    assert outcome.code == 3 and "contradicts itself" in outcome.err and "MatMul_3" in outcome.err
