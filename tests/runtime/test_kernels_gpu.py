"""What only a GPU can answer: every way of the torch backend against the exact sum on ViT-Base's shapes, and graphs."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpusq_onnx.runtime.kernels import sparse
from gpusq_onnx.runtime.kernels.arithmetic import Tail
from gpusq_onnx.runtime.kernels.attention import attention, reference
from gpusq_onnx.runtime.kernels.choose import DENSE_WAYS, WAYS, Chooser
from gpusq_onnx.runtime.kernels.graphs import CudaRunner, compiled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"torch {torch.__version__} finds no GPU"),
]
GPU = torch.device("cuda")


def codes(rows: int, k: int, *, pruned: bool = False) -> Tensor:
    made = torch.randint(-127, 128, (rows, k), generator=torch.Generator().manual_seed(rows + k), dtype=torch.int8)
    if pruned:
        made.view(rows, k // 4, 4)[:, :, 1::2] = 0
    return made.to(GPU)


def tail(n: int, kind: str) -> Tail:
    random = torch.Generator().manual_seed(n)
    alpha, bias = torch.rand(n, generator=random) * 1e-5 + 1e-6, torch.randn(n, generator=random)
    middle, out = torch.tensor(0.05), torch.tensor(0.03)
    made = {
        "float": Tail(alpha, bias, dtype=torch.bfloat16),
        "gelu": Tail(alpha, bias, activation="gelu", out=out),
        "codes": Tail(alpha, bias, out=middle),
        "both": Tail(alpha, bias, middle=middle, activation="gelu", out=out),
    }
    return made[kind].to(GPU)


@pytest.mark.parametrize("kind", ["float", "gelu", "codes", "both"])
@pytest.mark.parametrize("rows", [197, 197 * 32])
@pytest.mark.parametrize(("n", "k"), [(2304, 768), (768, 768), (3072, 768), (768, 3072)])
def test_every_way_is_exact(rows: int, n: int, k: int, kind: str, tmp_path: Path) -> None:
    chooser, given = Chooser(GPU, store=tmp_path / "kernels.json"), codes(rows, k)
    weight, after = codes(n, k, pruned=True), tail(n, kind)
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
    q, k, v = (codes(2 * 3 * tokens, 64).reshape(2, 3, tokens, 64) for _ in range(3))
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
