"""What only a GPU can answer: every way of the torch backend against the exact sum on ViT-Base's shapes, and graphs."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpusq_onnx.runtime.kernels import sparse
from gpusq_onnx.runtime.kernels.attention import attention, reference
from gpusq_onnx.runtime.kernels.choose import DENSE_WAYS, WAYS, Chooser
from gpusq_onnx.runtime.kernels.graphs import CudaRunner, compiled
from tools.gpu.exact import KINDS, codes, tail

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"torch {torch.__version__} finds no GPU"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [197, 197 * 32])
@pytest.mark.parametrize(("n", "k"), [(2304, 768), (768, 768), (3072, 768), (768, 3072)])
def test_every_way_is_exact(rows: int, n: int, k: int, kind: str, tmp_path: Path) -> None:
    chooser, given = Chooser(GPU, store=tmp_path / "kernels.json"), codes(rows, k, GPU)
    weight, after = codes(n, k, GPU, pruned=True), tail(n, kind, GPU)
    expected = after(given.double() @ weight.double().t())
    answer = chooser.ask(weight, after, rows, is_sparse=True)
    assert answer.microseconds, answer.refused
    for way in answer.microseconds:
        found = chooser.build(weight, after, rows, is_sparse=True, ways=(way,))(given)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if found.dtype == torch.int8:
            assert int((found.int() - expected.int()).abs().max()) <= 1, way
            assert float((found != expected).float().mean()) < 0.02, way
        else:
            assert float((found.double() - expected.double()).norm() / expected.double().norm()) < 0.01, way
    again = Chooser(GPU, store=tmp_path / "kernels.json")
    assert again.ask(weight, after, rows, is_sparse=True) == answer
    assert answer.best(WAYS) in answer.microseconds and answer.best(DENSE_WAYS) != "sparse"


def test_what_of_cusparselt_works_is_known() -> None:
    found = sparse.Operators.find(GPU)
    if isinstance(found, str):
        pytest.skip(found)
    assert torch.int32 in found.outputs


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("tokens", [17, 197, 512])
def test_attention_is_exact(tokens: int) -> None:
    q, k, v = (codes(2 * 3 * tokens, 64, GPU).reshape(2, 3, tokens, 64) for _ in range(3))
    scales = torch.tensor([0.02, 0.015, 1 / 127, 0.03], device=GPU)
    for out in (None, torch.tensor(0.01, device=GPU)):
        found = attention(q, k, v, scales, out, torch.bfloat16)
        expected = reference(q, k, v, scales, out, torch.bfloat16)
        assert float((found.double() - expected.double()).norm() / expected.double().norm()) < 0.02


def test_a_recorded_graph_takes_the_time_that_it_says() -> None:
    x = torch.randn(2048, 2048, device=GPU)
    runner = CudaRunner(lambda: compiled_product(x), GPU)
    assert runner.recorded, runner.reason
    once, often = runner.measure(20), runner.measure(200)
    assert 5 < often / once < 20
    runner.close()


def compiled_product(x: Tensor) -> object:
    return x @ x


def test_compiled_functions_are_whole_graphs() -> None:
    run = compiled(lambda x: torch.relu(x) + 1)
    assert bool((run(torch.ones(4, device=GPU)) == 2).all())  # type: ignore[arg-type]
