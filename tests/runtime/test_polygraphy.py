"""Polygraphy's own commands on what `apply` and `check` write: the embedded model, and ViT-Tiny (slow)."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

from gpusq_onnx.cli import main
from gpusq_onnx.runtime.ort import Session

pytestmark = pytest.mark.long

ASSETS = Path(__file__).parents[1] / "assets"
SHARED = Path(os.environ.get("GPUSQ_SHARED", Path(__file__).parents[3] / "shared")) / "data"


class Desk(NamedTuple):
    """A model, its compressed form and what `check --artefacts` saved; `pruned`: how many weights are 2:4."""

    folder: Path
    original: Path
    compressed: Path
    pruned: int

    def polygraphy(self, *words: str | Path, site: Path | None = None) -> str:
        """The output of one command, which must end well."""
        command = [Path(sys.executable).with_name("polygraphy"), *map(str, words)]
        paths = [str(site)] if site else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, env=environment, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout


def gpusq(*words: str | Path) -> None:
    assert main([*map(str, words), "--quiet"]) == 0


@pytest.fixture(scope="module", params=["digits", pytest.param("vit_tiny", marks=pytest.mark.slow)])
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    if request.param == "digits":
        original, data, pruned = ASSETS / "digits_vit.onnx", ["--data", ASSETS / "digits_test.npz"], 12
    else:
        original, pruned = SHARED / "vit_tiny_imagenet.onnx", 48
        if not original.is_file():
            pytest.skip(f"{original} is not there: set GPUSQ_SHARED")
        data, half = ["--data", SHARED / "imagenet" / "val"], "0.5,0.5,0.5"
        data = [
            "--data",
            SHARED / "imagenet" / "val",
            "--resize",
            "248",
            "--crop",
            "224",
            "--mean",
            half,
            "--std",
            half,
        ]
    compressed, few = folder / "small.onnx", ["--samples", "16"]
    gpusq(
        "apply", "-p", "prune24,qdq-int8", "--set", "prune24.method=magnitude", *data, *few, "-o", compressed, original
    )
    gpusq("check", *data, *few, "--artefacts", folder, original, compressed)
    return Desk(folder, original, compressed, pruned)


def test_run_goes_on_from_the_saved_files(desk: Desk) -> None:
    load = ["--onnxrt", "--load-inputs", "inputs.json", "--load-outputs"]
    assert "Pass Rate: 100.00%" in desk.polygraphy("run", desk.original, *load, "outputs.json", "--atol", "1e-4")
    # onnxruntime fuses Q and DQ with their neighbours there: single steps round otherwise
    loose = ["--check-error-stat", "mean", "--atol", "0.25"]
    assert "Pass Rate: 100.00%" in desk.polygraphy("run", desk.compressed, *load, "compressed_outputs.json", *loose)


def test_the_saved_outputs_are_those_of_their_model_and_no_other(desk: Desk) -> None:
    command = ["run", desk.compressed, "--onnxrt", "--load-inputs", "inputs.json", "--load-outputs", "outputs.json"]
    with pytest.raises(AssertionError, match="FAILED"):
        desk.polygraphy(*command, "--atol", "1e-4")


def test_inspect_finds_the_graph_and_every_sparse_weight(desk: Desk) -> None:
    shown = desk.polygraphy("inspect", "model", desk.compressed)
    assert f"---- {len(onnx.load(desk.compressed).graph.node)} Node(s) ----" in shown
    found = desk.polygraphy("inspect", "sparsity", desk.compressed)
    assert len(set(re.findall(r"Found sparse tensor: (\S+)", found))) == desk.pruned


def test_convert_builds_an_engine(desk: Desk, harness: Path) -> None:
    from gpusq_onnx.runtime.trt_cpu import prepare

    shape = ",".join(str(size) if isinstance(size, int) else "1" for size in Session(desk.original).inputs()[0].shape)
    name = Session(desk.original).inputs()[0].name
    bounds = f"{name}:[{shape}]"
    shapes = ["--trt-min-shapes", bounds, "--trt-opt-shapes", bounds, "--trt-max-shapes", bounds]
    flags = ["--convert-to", "trt", "--strongly-typed", "--sparse-weights", *shapes]
    desk.polygraphy("convert", desk.compressed, *flags, "-o", "small.plan", site=prepare(harness))
    assert (desk.folder / "small.plan").stat().st_size > 1000


def test_convert_copies_the_model(desk: Desk) -> None:
    desk.polygraphy("convert", desk.compressed, "-o", "copy.onnx")
    assert onnx.load(desk.folder / "copy.onnx").graph == onnx.load(desk.compressed).graph


def test_what_surgeon_sanitized_still_computes_the_same(desk: Desk) -> None:
    desk.polygraphy("surgeon", "sanitize", desk.compressed, "--fold-constants", "--cleanup", "-o", "clean.onnx")
    load = ["--onnxrt", "--load-inputs", "inputs.json", "--load-outputs", "compressed_outputs.json"]
    assert "Pass Rate: 100.00%" in desk.polygraphy(
        "run", "clean.onnx", *load, "--check-error-stat", "mean", "--atol", "0.25"
    )


def test_surgeon_extracts_a_part_that_runs(desk: Desk) -> None:
    graph = onnx.load(desk.compressed).graph
    middle = graph.node[len(graph.node) // 2].output[0]
    source = graph.input[0].name
    ends = ["--inputs", f"{source}:auto:auto", "--outputs", f"{middle}:auto"]
    desk.polygraphy("surgeon", "extract", desk.compressed, *ends, "-o", "part.onnx")
    assert [info.name for info in Session(desk.folder / "part.onnx").outputs()] == [middle]
    desk.polygraphy("run", "part.onnx", "--onnxrt", "--load-inputs", "inputs.json")
