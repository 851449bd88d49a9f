"""The GPU benchmark on the CPU at a tiny size: torch and numpy are enough, wrong kernels end it, all is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpusq_onnx.runtime.kernels.choose import Chooser
from gpusq_onnx.runtime.kernels.dense import DenseLinear
from tools.bench import formats, models
from tools.bench.swin import Merge, WindowBlock

ROOT = Path(__file__).parents[2]
ABSENT = "onnx onnxruntime onnx_graphsurgeon polygraphy pydantic typer rich PIL tensorrt ml_dtypes matplotlib".split()
QUICK = "--device cpu --models tiny --batch 1,2 --rounds 3 --warm 0.001 --least 0.0001".split()


@pytest.mark.long
def test_it_runs_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    hide = "; ".join(f"sys.modules[{name!r}] = None" for name in ABSENT)
    arguments = [*QUICK, "--out", str(tmp_path)]
    start = f"import sys; {hide}; from tools.bench.gpu import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    titles = [line["title"] for line in found["lines"]]
    assert titles[:5] == [
        "tiny qkv, batch 1: [17, 64] x [64, 192]",
        "tiny proj, batch 1: [17, 64] x [64, 64]",
        "tiny fc1, batch 1: [17, 64] x [64, 256]",
        "tiny fc2, batch 1: [17, 256] x [256, 64]",
        "tiny, batch 1",
    ]
    assert len(titles) == 10
    network = found["lines"][-1]["rows"]
    assert set(network) == {"FP32", "INT8", "INT8 2:4", "INT8, INT8 out", "INT8 2:4, INT8 out"}
    assert all(len(row["samples"]) == 3 and row["images/s"] > 0 for row in network.values())
    assert network["INT8"]["x INT8"] == 1.0
    assert len(found["answers"]) == 16
    assert {answer["shape"][0] for answer in found["answers"]} == {17, 34}
    assert all(title in done.stdout for title in titles)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.bench.gpu import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--models", "tiny"]) == 5
    assert "finds no GPU" in capsys.readouterr().err


class Broken(DenseLinear):
    """Forgets the last row of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[x.shape[0] // 2 :] = 0
        return super().forward(x)


class BrokenChooser(Chooser):
    def build(self, codes, tail, rows, *, is_sparse, ways=()):
        return Broken(codes, tail)


def test_a_wrong_kernel_ends_the_run() -> None:
    chooser = BrokenChooser(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="INT8 is wrong"), formats.linear_formats(64, 32, 32, chooser, gelu=False):
        pass
    with pytest.raises(RuntimeError, match="INT8 is wrong"), formats.network_formats(models.MODELS["tiny"], 2, chooser):
        pass


def test_a_shifted_window_sees_its_neighbours_in_the_image_alone() -> None:
    block = WindowBlock(32, 2, 8, 4, 2, torch.Generator().manual_seed(0)).eval()
    x = torch.randn(1, 64, 32)
    changed = x.clone()
    changed[:, 0] += 1  # the corner: its shifted window holds the 2 x 2 tokens of the corner, and other corners' tokens
    with torch.no_grad():
        moved = (block.attend(x) - block.attend(changed)).abs().amax(2).view(8, 8) > 1e-6
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(moved, expected)


def test_swin_tiny_has_the_papers_size() -> None:
    network = models.MODELS["swin_tiny"].network()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(28.3, abs=0.1)
    assert [(b.linears, b.tokens) for b in network.blocks if isinstance(b, Merge)] == [
        (("reduction",), tokens) for tokens in (784, 196, 49)
    ]


def test_every_format_of_a_network_with_windows_is_right() -> None:
    with formats.network_formats(models.MODELS["tiny_swin"], 2, Chooser(torch.device("cpu"))) as runners:
        assert set(runners) == {"FP32", "INT8", "INT8 2:4", "INT8, INT8 out", "INT8 2:4, INT8 out"}
