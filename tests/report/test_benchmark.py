"""What `bench` makes of timings: rows, baselines, ratios, the page, the chart; on a backend whose times are known."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

import gpusq_onnx
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import EnvironmentLacking, UnsupportedModelError, UsageError
from gpusq_onnx.pipeline import grammar, manager, table
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.report.benchmark import Benchmark, digest, draw, require_chart
from gpusq_onnx.runtime.bench.backend import CPU_BASELINES, GPU_BASELINES, Baseline, Variant
from gpusq_onnx.runtime.bench.timing import Rounds
from gpusq_onnx.workflows.baselines import given_entry
from gpusq_onnx.workflows.bench import run_benchmark

ASSETS = Path(__file__).parents[1] / "assets"
FLOAT = ASSETS / "digits_vit.onnx"
QUICK = Rounds(rounds=3, warm=0.0, least=0.0)


class Known:
    """A runner that takes a known time an execution."""

    def __init__(self, seconds: float, opened: list["Known"]) -> None:
        self.seconds, self.closed = seconds, False
        opened.append(self)

    def measure(self, times: int) -> float:
        assert not self.closed
        return times * self.seconds

    def close(self) -> None:
        self.closed = True


class KnownBackend:
    """FP32 takes 8 ms an image, TF32 4, FP16 2.5, dense INT8 2, anything sparse 1."""

    name = "known"

    def __init__(self, baselines: Sequence[Baseline] = CPU_BASELINES, *, refuses: str = "") -> None:
        self.gpu, self.refuses = baselines is GPU_BASELINES, refuses
        self.baselines = baselines
        self.asked: list[tuple[Variant, int]] = []
        self.opened: list[Known] = []

    def require(self) -> dict[str, str]:
        return {"known": "1.0"}

    def notes(self) -> list[str]:
        return ["it is made up"]

    def choices(self) -> list[str]:
        return ["fc1 runs sparse"]

    def open(self, variant: Variant, batch: int) -> Known:
        self.asked.append((variant, batch))
        name = given_entry(variant.path).format
        if self.refuses and name.startswith(self.refuses):
            raise UnsupportedModelError(f"{self.refuses} is not for me")
        if variant.precision in ("FP32", "TF32"):
            name = variant.precision
        seconds = {"FP32": 8, "TF32": 4, "FP16": 2.5, "INT8": 2}.get(name, 1) * 1e-3
        return Known(seconds * batch, self.opened)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "small.onnx"
    passes = table.expand(grammar.parse("prune24{method=magnitude},qdq-int8"))
    manager.run(FLOAT, path, passes, RunOptions(DataOptions.from_values({"samples": 4})))
    return path


@pytest.fixture(scope="module")
def backend() -> KnownBackend:
    return KnownBackend()


@pytest.fixture(scope="module")
def found(sparse: Path, backend: KnownBackend) -> Benchmark:
    return run_benchmark([FLOAT, sparse], backend, [1, 4], QUICK)


def formats(found: Benchmark) -> list[tuple[str, str, bool]]:
    return [(row.model, row.format, row.given) for row in found.rows]


def test_formats_are_read_from_the_weights(sparse: Path) -> None:
    entry = given_entry(sparse)
    assert (entry.model, entry.format, entry.variant.sparse) == ("small", "INT8 2:4", True)
    dense = given_entry(FLOAT)
    assert (dense.format, dense.variant.sparse) == ("FP32", False)
    # the paper's count: blocks are most of it, 32 times fewer FLOPs there, and 5 of 32 bits a weight
    assert dense.flops / entry.flops > 5 and 2 < dense.parameters / entry.parameters < 6.4


@pytest.mark.parametrize(
    ("passes", "name"),
    [
        ("qdq-fp8", "FP8"),
        ("qdq-nvfp4", "FP4"),
        ("int4-weights", "INT4 weights"),
        ("qdq-int4", "INT8"),
        ("fp16", "FP16"),
    ],
)
def test_each_format_has_its_name(passes: str, name: str, tmp_path: Path) -> None:
    options = DataOptions.from_values({"samples": 2})
    manager.run(FLOAT, tmp_path / "made.onnx", table.expand(grammar.parse(passes)), RunOptions(options))
    assert given_entry(tmp_path / "made.onnx").format == name


@pytest.mark.parametrize("asked", [{"models": []}, {"rounds": 0}, {"batches": [0]}, {"batches": []}])
def test_nothing_to_time_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        gpusq_onnx.bench(**{"models": FLOAT, "backend": KnownBackend(()), "batches": [1], **asked})


def test_one_model_needs_no_list() -> None:
    found = gpusq_onnx.bench(str(FLOAT), backend=KnownBackend(()), batches=[1], rounds=1)
    assert formats(found) == [("digits_vit", "FP32", True)]


def test_baselines_are_of_the_first_dense_model(tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(FLOAT.read_bytes())
    found = run_benchmark([FLOAT, other], KnownBackend([Baseline("FP16", "half")]), [1], QUICK)
    assert formats(found)[-1] == ("digits_vit", "FP16", False)


@pytest.mark.long
def test_rows_rivals_and_ratios_on_a_cpu(found: Benchmark, backend: KnownBackend) -> None:
    assert formats(found) == [
        ("digits_vit", "FP32", True),
        ("small", "INT8 2:4", True),
        ("digits_vit", "FP16", False),
        ("digits_vit", "INT8", False),
    ]
    assert found.reference == "FP32" and found.batches == [1, 4]
    ratios = {row.format: row.cells[4].against_reference for row in found.rows}
    assert ratios == pytest.approx({"FP32": 1.0, "INT8 2:4": 8.0, "FP16": 3.2, "INT8": 4.0})
    assert found.rows[1].cells[1].against_int8 == pytest.approx(2.0)
    assert found.notes[-1] == "it is made up"
    assert backend.opened and all(runner.closed for runner in backend.opened)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.long
def test_on_a_gpu_tf32_is_the_reference_and_only_given_models_may_be_sparse(sparse: Path) -> None:
    backend = KnownBackend(GPU_BASELINES)
    found = run_benchmark([sparse], backend, [2], QUICK)
    assert [row.format for row in found.rows] == ["INT8 2:4", "FP32", "TF32", "FP16", "INT8"]
    assert found.reference == "TF32"
    assert found.rows[0].cells[2].against_reference == pytest.approx(4.0)
    assert [variant.sparse for variant, _ in backend.asked] == [True, False, False, False, False]
    assert [variant.precision for variant, _ in backend.asked] == ["as is", "FP32", "TF32", "as is", "as is"]


def test_a_format_that_is_given_is_not_made(tmp_path: Path) -> None:
    dense = tmp_path / "int8.onnx"
    options = DataOptions.from_values({"samples": 4})
    manager.run(FLOAT, dense, table.expand(grammar.parse("qdq-int8")), RunOptions(options))
    found = run_benchmark(
        [FLOAT, dense], KnownBackend((Baseline("FP32", "float"), Baseline("INT8", "int8"))), [1], QUICK
    )
    assert formats(found) == [("digits_vit", "FP32", True), ("int8", "INT8", True)]


def test_a_rival_that_cannot_run_is_a_note_and_a_given_model_an_error(sparse: Path) -> None:
    found = run_benchmark([FLOAT, sparse], KnownBackend([Baseline("FP16", "half")], refuses="FP16"), [1], QUICK)
    assert "FP16" not in [row.format for row in found.rows]
    assert any("no dense FP16 at batch 1" in note for note in found.notes)
    backend = KnownBackend((), refuses="INT8 2:4")
    with pytest.raises(UnsupportedModelError):
        run_benchmark([FLOAT, sparse], backend, [1], QUICK)
    assert all(runner.closed for runner in backend.opened)


def test_a_model_without_its_float_form_has_no_dense_rivals_and_says_so(tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    manager.run(FLOAT, half, table.expand(grammar.parse("fp16")), RunOptions(DataOptions.from_values({"samples": 2})))
    found = run_benchmark([half], KnownBackend(), [1], QUICK)
    assert [row.format for row in found.rows] == ["FP16"]
    assert found.reference == "" and found.rows[0].cells[1].against_reference is None
    assert "name the FP32 model, too" in found.notes[0]
    assert "(1.00x)" not in digest(found)


def test_a_model_named_twice_is_a_usage_error(sparse: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        run_benchmark([sparse, sparse.parent / "." / sparse.name], KnownBackend(), [1], QUICK)


@pytest.mark.long
def test_the_page_has_the_papers_columns(found: Benchmark) -> None:
    page = digest(found)
    header = next(line for line in page.splitlines() if line.startswith("| model"))
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert columns == [
        "model", "format", "params (M)", "FLOPs (G)", "latency, batch 1 (ms)",
        "throughput, batch 4 (images/s)", "x dense INT8", "spread",
    ]  # fmt: skip
    assert "1.000 (8.00x)" in page and "1,000 (8.00x)" in page
    assert "known 1.0" in page and "no transfers counted" in page
    assert page.endswith("## What serves\n\n- fc1 runs sparse\n")


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_chart_is_drawn(tmp_path: Path, found: Benchmark, suffix: str, magic: bytes) -> None:
    chart = tmp_path / f"chart{suffix}"
    draw(found, chart)
    assert chart.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [chart]


def test_a_chart_that_cannot_be_drawn_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="suffix"):
        require_chart(Path("chart.docx"))
    with pytest.raises(UsageError, match="folder does not exist"):
        require_chart(Path("nowhere") / "chart.png")
    monkeypatch.setattr("gpusq_onnx.report.benchmark.find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacking, match=r"gpusq-onnx\[report\]"):
        require_chart(Path("chart.png"))


@pytest.mark.long
def test_the_files_of_rivals_are_gone_afterwards(found: Benchmark, backend: KnownBackend, sparse: Path) -> None:
    baselines = [variant.path for variant, _ in backend.asked if variant.path not in (sparse, FLOAT)]
    assert baselines and not any(path.exists() for path in baselines)
    assert onnx.load(sparse).graph.node
