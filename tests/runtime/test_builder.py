"""Engines, built by the harness for machines with no GPU; and what happens where no TensorRT can build."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from runtime_models import linear, qdq_linear, save

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedModelError, UsageError
from gpusq_onnx.graph.io import data_files, file_digest, load
from gpusq_onnx.runtime.store import Store
from gpusq_onnx.runtime.tensorrt.commands import polygraphy
from gpusq_onnx.runtime.tensorrt.engine import Built, build_engine, card_of
from gpusq_onnx.runtime.tensorrt.layers import read_printed_layers
from gpusq_onnx.runtime.tensorrt.library import Library, find_library
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import make_profiles, parse_batch
from gpusq_onnx.runtime.trt_cpu import ready

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def library(harness: Path) -> Library:
    return find_library(harness=harness)


def options(model: Path, batch: str = "1,4,8") -> BuildOptions:
    return BuildOptions(make_profiles(load(model).inputs(), [parse_batch(batch)]))


def built(model: Path, library: Library, given: BuildOptions | None = None, cache: Path | None = None) -> Built:
    digest = file_digest(model, data_files(load(model)))
    return build_engine(model, digest, model.with_suffix(".plan"), given or options(model), library, cache=cache)


def test_the_harness_is_a_library_for_no_gpu(library: Library) -> None:
    assert library.name == "TensorRT-RTX 1.7 (CPU)"
    assert (library.gpu, library.deployable, library.major) == (None, False, 11)


def test_an_engine_and_its_card_come_out(tmp_path: Path, library: Library) -> None:
    model = qdq_linear(tmp_path / "m.onnx")
    found = built(model, library)
    assert (found.ok, found.errors, found.cached) == (True, (), False)
    assert found.plan.stat().st_size == found.bytes > 1000
    assert file_digest(found.plan) == found.sha256
    card = json.loads(card_of(found.plan).read_text())
    assert card["deployable"] is False
    assert card["note"].startswith("NOT FOR DEPLOYMENT")
    assert card["model"] == file_digest(model)
    assert card["options"]["profiles"][0]["x"] == {"min": [1, 16], "opt": [4, 16], "max": [8, 16]}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.plan", "m.plan.json"]


def test_the_engine_s_layers_are_known_without_a_gpu(tmp_path: Path, library: Library) -> None:
    found = built(qdq_linear(tmp_path / "m.onnx"), library)
    (gemm,) = [layer for layer in read_printed_layers(found.log) if "mm" in layer.nodes and layer.kind == "gemm"]
    assert (gemm.precision, gemm.output) == ("INT8", "FP32")
    assert found.inspector == ""
    assert "Could not deserialize engine" in found.uninspected


def test_every_option_reaches_the_builder(tmp_path: Path, library: Library) -> None:
    model = linear(tmp_path / "m.onnx")
    given = replace(
        options(model),
        profiles=(*options(model, "1,2,4").profiles, *options(model, "16").profiles),
        tf32=False,
        optimization_level=5,
        memory={"workspace": 64 * 2**20},
        hardware="ampere_plus",
        version_compatible=True,
    )
    text = "\n".join(built(model, library, given).log)
    assert "SPARSE_WEIGHTS" in text
    assert "VERSION_COMPATIBLE" in text
    assert "TF32" not in text.split("Flags")[1].splitlines()[0]
    assert "WORKSPACE: 64.00 MiB" in text
    assert "ProfilingVerbosity.DETAILED" in text
    assert "min=[16, 16], opt=[16, 16], max=[16, 16]" in text
    assert "AMPERE_PLUS" in text or "setHardwareCompatibilityLevel() is unsupported" in text


def test_a_memory_limit_is_enforced(tmp_path: Path, library: Library) -> None:
    model = linear(tmp_path / "m.onnx")
    found = built(model, library, replace(options(model), memory={"workspace": 1024}))
    assert not found.ok
    assert any("within workspace limit" in error for error in found.errors)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    with pytest.raises(UsageError, match="within workspace limit"):
        found.require(model)


def test_polygraphy_s_switch_reaches_tensorrt_rtx(tmp_path: Path, harness: Path) -> None:
    rtx = find_library(rtx=True, harness=harness)
    model = qdq_linear(tmp_path / "m.onnx")
    assert built(model, rtx, replace(options(model), rtx=True), tmp_path / "cache").ok
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == ["engines"], "TensorRT-RTX times nothing"


def test_external_data_belongs_to_the_model(tmp_path: Path, library: Library) -> None:
    import onnx

    model = linear(tmp_path / "plain.onnx", np.ones((16, 8), np.float32))
    external = tmp_path / "m.onnx"
    onnx.save(onnx.load(model), external, save_as_external_data=True, location="m.data", size_threshold=0)
    first = built(external, library, cache=tmp_path / "cache")
    (tmp_path / "m.data").write_bytes(np.full(128, 2, np.float32).tobytes())
    second = built(external, library, cache=tmp_path / "cache")
    assert first.ok and second.ok
    assert not second.cached


@pytest.mark.parametrize(
    ("defect", "words"), [({"zero_point": 3}, "Non-zero zero point"), ({"int32_bias": True}, "Int32")]
)
def test_a_model_that_the_parser_refuses_leaves_nothing(
    tmp_path: Path, library: Library, defect: dict[str, object], words: str
) -> None:
    model = qdq_linear(tmp_path / "m.onnx", **defect)
    older = tmp_path / "m.plan"
    older.write_bytes(b"older")
    found = built(model, library, cache=tmp_path / "cache")
    assert not found.ok
    assert words in found.errors[0]
    assert older.read_bytes() == b"older"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.plan"]


def test_a_model_that_the_builder_refuses_has_its_reasons(tmp_path: Path, library: Library) -> None:
    model = save(tmp_path / "m.onnx", [helper.make_node("Add", ["x", "c"], ["y"])], {"c": [1.0] * 8}, width="W")
    given = BuildOptions(({"x": next(iter(make_profiles(load(linear(tmp_path / "l.onnx")).inputs())[0].values()))},))
    found = built(model, library, given)
    assert found.errors[0].startswith("builder: ")
    assert any(error.startswith("[E]") for error in found.errors)


def test_an_equal_build_is_taken_from_the_cache(tmp_path: Path, library: Library) -> None:
    model, cache = qdq_linear(tmp_path / "m.onnx"), tmp_path / "cache"
    first = built(model, library, cache=cache)
    first.plan.unlink()
    again = built(model, library, cache=cache)
    assert (first.cached, again.cached) == (False, True)
    assert replace(again, cached=False) == first
    assert file_digest(again.plan) == again.sha256
    assert card_of(again.plan).is_file()
    other = built(model, library, options(model, "2"), cache=cache)
    assert not other.cached


def test_a_corrupt_engine_in_the_cache_is_built_again(tmp_path: Path, library: Library) -> None:
    model, cache = qdq_linear(tmp_path / "m.onnx"), tmp_path / "cache"
    built(model, library, cache=cache)
    (kept,) = (cache / "engines").glob("*.bin")
    kept.write_bytes(kept.read_bytes()[:100])
    again = built(model, library, cache=cache)
    assert (again.ok, again.cached) == (True, False)
    assert built(model, library, cache=cache).cached, "and the entry is whole again"


def test_an_engine_of_another_library_is_not_taken(tmp_path: Path, library: Library) -> None:
    model, cache = qdq_linear(tmp_path / "m.onnx"), tmp_path / "cache"
    built(model, library, cache=cache)
    newer = replace(library, version="11.5.0.1")
    assert not built(model, newer, cache=cache).cached
    gpu = {"name": "NVIDIA H100", "capability": "9.0", "driver": "13.0"}
    assert not built(model, replace(library, gpu=gpu), cache=cache).cached


@pytest.mark.parametrize("damage", ["cut", "another's"])
def test_timings_that_cannot_be_used_are_made_again(tmp_path: Path, library: Library, damage: str) -> None:
    model, cache = qdq_linear(tmp_path / "m.onnx"), tmp_path / "cache"
    built(model, library, cache=cache)
    (timings,) = (cache / "timings").glob("*.bin")
    if damage == "cut":
        timings.write_bytes(timings.read_bytes()[:7])
    else:  # whole for us, and nothing that this builder wrote
        (tmp_path / "other").write_bytes(b"no timing cache")
        Store(cache, "timings").keep(
            json.loads(timings.with_suffix(".json").read_text())["key"], tmp_path / "other", {}
        )
    shutil.rmtree(cache / "engines")
    assert built(model, library, cache=cache).ok
    assert len(timings.read_bytes()) > 100


def test_the_polygraphy_line_builds_it_too(tmp_path: Path, harness: Path) -> None:
    model = qdq_linear(tmp_path / "m.onnx")
    line = shlex.split(polygraphy(model, tmp_path / "p.plan", options(model)))
    tool = Path(sys.executable).parent / line[0]
    if not tool.is_file():
        pytest.skip(f"no {tool}: polygraphy's console script belongs to another Python")
    done = subprocess.run(
        [tool, *line[1:]], env={**os.environ, "PYTHONPATH": str(ready(harness))}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "p.plan").stat().st_size > 1000


@pytest.fixture
def fake_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a `tensorrt`, or the module of another name, on the import path that goes as far as the test says."""

    def make(body: str, name: str = "tensorrt") -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(textwrap.dedent(body))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, name, raising=False)

    return make


STARTS = """
import os, signal
__version__ = "{version}"
class ILogger:
    def __init__(self): pass
class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = EXPLICIT_BATCH = 1
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): return object()
class OnnxParser:
    def __init__(self, network, logger): pass
    def parse_from_file(self, path): os.kill(os.getpid(), signal.SIGSEGV)
def init_libnvinfer_plugins(logger, namespace): pass
"""


@pytest.mark.parametrize(
    ("body", "words", "remedy"),
    [
        ("raise OSError('libnvinfer.so.10: cannot open')", "installed and does not load", "--force-reinstall"),
        ("__version__ = '8.6.1'", "TensorRT 8.6.1 is too old", "tensorrt>=10"),
        ("__version__ = '10.9.0'", "TensorRT 10.9 finds no NVIDIA GPU", "install the NVIDIA driver"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "crashed with SIGABRT", "--force-reinstall"),
        (STARTS.format(version="11.4.0"), "TensorRT 11.4 finds no NVIDIA GPU", "install the NVIDIA driver"),
    ],
)
def test_a_tensorrt_that_cannot_build_is_told_with_what_to_install(fake_tensorrt, body: str, words: str, remedy: str):
    fake_tensorrt(body)
    with pytest.raises(EnvironmentLacking, match=words) as caught:
        find_library()
    assert caught.value.exit_code == 5
    assert remedy in str(caught.value)
    assert "--cpu-harness" in str(caught.value)


@pytest.mark.parametrize(("rtx", "package"), [(False, "gpusq-onnx[tensorrt]"), (True, "tensorrt-rtx")])
def test_no_tensorrt_is_told_with_what_to_install(rtx: bool, package: str) -> None:
    with pytest.raises(EnvironmentLacking, match="is not installed") as caught:
        find_library(rtx=rtx)
    assert package in str(caught.value)


def test_the_switch_for_tensorrt_rtx_chooses_the_module(fake_tensorrt) -> None:
    fake_tensorrt("raise ImportError('not this one')")
    fake_tensorrt(STARTS.format(version="1.7.0"), "tensorrt_rtx")
    assert find_library(rtx=True) == Library("TensorRT-RTX 1.7", "1.7.0", None, None, True)
    with pytest.raises(EnvironmentLacking, match="not this one"):
        find_library()


def test_the_harness_is_never_taken_unasked(fake_tensorrt, library: Library) -> None:
    fake_tensorrt("raise ImportError('no GPU')")
    with pytest.raises(EnvironmentLacking):
        find_library()


def test_a_builder_that_crashes_has_refused_the_model(fake_tensorrt, tmp_path: Path) -> None:
    fake_tensorrt(STARTS.format(version="11.4.0"))
    model = linear(tmp_path / "m.onnx")
    found = built(model, Library("TensorRT 11.4", "11.4.0", None, None, False))
    assert found.errors[0] == "the builder crashed with SIGSEGV"
    assert not found.plan.exists()
    with pytest.raises(UnsupportedModelError, match="crashed with SIGSEGV"):
        found.require(model)


def test_a_builder_that_takes_too_long_has_refused_the_model(fake_tensorrt, tmp_path: Path) -> None:
    fake_tensorrt(STARTS.format(version="11.4.0").replace("os.kill(os.getpid(), signal.SIGSEGV)", "signal.pause()"))
    model = linear(tmp_path / "m.onnx")
    library = Library("TensorRT 11.4", "11.4.0", None, None, False)
    found = build_engine(model, "", tmp_path / "m.plan", options(model), library, timeout=2)
    assert found.errors[0] == "the builder was stopped after 2 s"


@pytest.mark.parametrize(
    ("said", "kind", "what"),
    [
        ("builder: [E] CUDA out of memory", EnvironmentLacking, "not enough memory"),
        ("[E] Unable to load library: libnvinfer_lean.so.1", EnvironmentLacking, "is not there"),
        ("[E] no tactics to implement the operation within workspace limit", UsageError, "no kernel keeps to"),
        ("[E] Could not find any implementation for node x", UnsupportedModelError, "builds no engine"),
    ],
)
def test_a_failed_build_is_blamed_on_what_caused_it(said: str, kind: type, what: str, tmp_path: Path) -> None:
    refused = Built(tmp_path / "p", (said,), "", 0, (), "", "", False, 1.0)
    with pytest.raises(kind, match=what):
        refused.require(tmp_path / "m.onnx")
