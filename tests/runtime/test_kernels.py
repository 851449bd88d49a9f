"""The quantised Linears of the torch backend against the ONNX operators' arithmetic, on the CPU.

cuSPARSELt needs a GPU: here its two private operators are played by what their documentation says, layouts and types
checked, so that everything around them is run.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.runtime.kernels import dense, float8, sparse
from gpusq_onnx.runtime.kernels.arithmetic import Tail, dequantise, padded_rows, quantise
from gpusq_onnx.runtime.kernels.choose import Chooser
from gpusq_onnx.runtime.ort import Session

CPU = torch.device("cpu")
ROWS, N, K = 37, 64, 96
S_X, S_Y, S_G = 0.031, 0.05, 0.02


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(pruned: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x[M, K] and w[N, K] in float, the weight's scales [N], a bias [N]."""
    made = random()
    x = torch.randn(ROWS, K, generator=made)
    w = torch.randn(N, K, generator=made) * 0.1
    if pruned:
        w.view(N, K // 4, 4)[:, :, ::2] = 0
    return x, w, w.abs().amax(1) / 127, torch.randn(N, generator=made)


def tails(scales: torch.Tensor, bias: torch.Tensor) -> dict[str, Tail]:
    alpha = S_X * scales
    middle, out = torch.tensor(S_Y), torch.tensor(S_G)
    return {
        "float": Tail(alpha, bias),
        "no bias": Tail(alpha),
        "output quantised": Tail(alpha, bias, middle=middle),
        "gelu": Tail(alpha, bias, activation="gelu", out=out),
        "output quantised, gelu": Tail(alpha, bias, middle=middle, activation="gelu", out=out),
        "tanh gelu": Tail(alpha, bias, activation="gelu_tanh", out=out),
        "relu": Tail(alpha, bias, activation="relu"),
        "codes": Tail(alpha, bias, out=middle),
    }


KINDS = list(tails(torch.ones(1), torch.ones(1)))


def onnx_linear(path: Path, tail: Tail, w: torch.Tensor, scales: torch.Tensor) -> Path:
    """The Q/DQ graph of one Linear with this tail, as `qdq-int8` writes it, with DQ after an INT8 result."""
    nodes, constants = [], {}

    def pair(tensor: str, scale: np.ndarray, axis: int | None = None) -> str:
        constants[f"{tensor}_s"] = scale.astype(np.float32)
        constants[f"{tensor}_z"] = np.zeros(scale.shape, np.int8)
        given = [f"{tensor}_s", f"{tensor}_z"]
        attrs = {} if axis is None else {"axis": axis}
        nodes.append(helper.make_node("QuantizeLinear", [tensor, *given], [f"{tensor}_q"], **attrs))
        nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", *given], [f"{tensor}_d"], **attrs))
        return f"{tensor}_d"

    constants["w"] = w.t().contiguous().numpy()
    at = "product"
    nodes_in = [pair("x", np.float32(S_X)), pair("w", scales.numpy(), 1)]
    nodes.append(helper.make_node("MatMul", nodes_in, [at]))
    if tail.bias is not None:
        constants["bias"] = tail.bias.numpy()
        nodes.append(helper.make_node("Add", [at, "bias"], ["biased"]))
        at = "biased"
    if tail.middle is not None:
        at = pair(at, tail.middle.numpy())
    if tail.activation:
        op = "Relu" if tail.activation == "relu" else "Gelu"
        attrs = {"approximate": "tanh"} if tail.activation == "gelu_tanh" else {}
        nodes.append(helper.make_node(op, [at], ["active"], **attrs))
        at = "active"
    if tail.out is not None:
        at = pair(at, tail.out.numpy())
    nodes.append(helper.make_node("Identity", [at], ["y"]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def cusparselt(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """torch's private operators as cuSPARSELt 0.8 on an A100 or H100 is documented; the output types asked for."""
    asked: list[torch.dtype] = []

    def compress(w: torch.Tensor) -> torch.Tensor:
        assert w.is_contiguous() and w.shape[0] % 32 == 0 and w.shape[1] % 32 == 0
        assert int((w.view(w.shape[0], -1, 4) != 0).sum(-1).max()) <= 2, "not 2:4"
        return w.clone()

    def multiply(compressed, dense_b, bias=None, alpha=None, out_dtype=None, transpose_result=False, alg_id=0, **_):
        assert dense_b.t().is_contiguous(), "INT8 wants the dense operand column by column"
        assert dense_b.shape[1] % 16 == 0
        assert transpose_result
        if out_dtype not in (None, torch.bfloat16, torch.float16, torch.int32):
            raise RuntimeError(f"Unsupported out_dtype {out_dtype} passed")
        out = out_dtype or torch.int8
        if bias is not None and bias.dtype != (torch.float32 if out == torch.int8 else out):
            raise RuntimeError("bias of a type that this kernel does not take")
        asked.append(out)
        y = (compressed.double() @ dense_b.double()).t()
        y = y if alpha is None else y * alpha.double()
        y = y if bias is None else y + bias.double()
        return y.round().clamp(-128, 127).to(out) if out == torch.int8 else y.to(out)

    monkeypatch.setattr(torch, "_cslt_compress", compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    return asked


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_equals_the_qdq_graph_on_onnxruntime(tmp_path: Path, kind: str) -> None:
    x, w, scales, bias = problem()
    tail = tails(scales, bias)[kind]
    expected = Session(onnx_linear(tmp_path / "m.onnx", tail, w, scales), exact_qdq=True).run({"x": x.numpy()})["y"]
    linear = dense.DenseLinear(quantise(w, scales[:, None], low=-127), tail)
    found = linear(quantise(x, S_X))
    if tail.out is not None:
        assert found.dtype == torch.int8
        found = dequantise(found, tail.out)
    if tail.middle is None and tail.out is None:
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
        return
    step = float(tail.out if tail.out is not None else tail.middle)
    steps = (found - torch.from_numpy(expected)).abs() / step
    # a sum that onnxruntime rounds in its last bit may fall on the other side of a tie, and move one step
    assert float((steps > 0.5).float().mean()) < 0.001
    assert float(steps.max()) < 3.0


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_is_dense_when_cusparselt_does_what_it_says(cusparselt: list[torch.dtype], kind: str) -> None:
    x, w, scales, bias = problem()
    tail = tails(scales, bias)[kind]
    codes, given = quantise(w, scales[:, None]), quantise(x, S_X)
    operators = sparse.Operators.find(CPU)
    assert isinstance(operators, sparse.Operators)
    assert operators.outputs == {torch.int8, torch.bfloat16, torch.float16, torch.int32}
    assert operators.bias == {
        torch.int8: torch.float32, torch.bfloat16: torch.bfloat16, torch.float16: torch.float16
    }  # fmt: skip
    cusparselt.clear()
    linear = sparse.SparseLinear(codes, tail, operators)
    found, expected = linear(given), dense.DenseLinear(codes, tail)(given)
    assert cusparselt == [torch.bfloat16 if tail.first_step is None else torch.int8]
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if tail.first_step is not None:
        assert float((found != expected).float().mean()) < 0.002  # ties of the first quantiser
    elif tail.out is not None:
        assert int((found.int() - expected.int()).abs().max()) <= 1  # BF16 between the kernel and the tail
    else:
        assert float((found - expected).norm() / expected.norm()) < 4e-3


def test_sparse_without_scaling_is_exact(cusparselt: list[torch.dtype]) -> None:
    """A library that writes INT32 only still serves, and loses nothing."""
    x, w, scales, bias = problem()
    codes, given = quantise(w, scales[:, None]), quantise(x, S_X)
    for tail in tails(scales, bias).values():
        linear = sparse.SparseLinear(codes, tail, sparse.Operators(frozenset({torch.int32}), {}))
        assert torch.equal(linear(given), dense.DenseLinear(codes, tail)(given))


def test_a_wrong_kernel_is_found_out(cusparselt: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores the vector alpha, as cuSPARSELt did for some types, is not used for that type."""
    right = torch._cslt_sparse_mm

    def wrong(*args, alpha=None, out_dtype=None, **kwargs):
        if out_dtype == torch.bfloat16 and alpha is not None:
            alpha = alpha[:1].expand_as(alpha)
        return right(*args, alpha=alpha, out_dtype=out_dtype, **kwargs)

    monkeypatch.setattr(torch, "_cslt_sparse_mm", wrong)
    operators = sparse.Operators.find(CPU)
    assert isinstance(operators, sparse.Operators)
    assert torch.bfloat16 not in operators.outputs and torch.bfloat16 not in operators.bias
    assert operators.float_output(torch.float32) == torch.float16


def test_without_cusparselt_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = sparse.Operators.find(CPU)
    assert isinstance(reason, str) and "cuSPARSELt does not work here" in reason
    monkeypatch.delattr(torch, "_cslt_compress")
    assert "has no _cslt_compress" in str(sparse.Operators.find(CPU))


def test_what_each_way_refuses() -> None:
    assert sparse.why_not(64, 64, sparse=False) == "the weight is not 2:4"
    assert "multiples of 32" in str(sparse.why_not(1000, 64, sparse=True))
    assert sparse.why_not(64, 64, sparse=True) is None
    assert dense.why_not(63, 64, CPU) is None
    assert "multiples of 8" in str(dense.why_not(63, 64, torch.device("cuda")))
    assert "multiples of 16" in str(float8.why_not(64, 72, CPU))


def test_rows_are_padded_with_zeros_and_no_more_than_needed() -> None:
    x = torch.ones(5, 3)
    assert padded_rows(x, 4).shape == (8, 3) and float(padded_rows(x, 4)[5:].abs().sum()) == 0
    assert padded_rows(x, 4, 32).shape == (32, 3)
    assert padded_rows(x, 5) is x


def test_float8_is_close() -> None:
    x, w, scales, bias = problem(pruned=False)
    scale = float8.float8_scale(x.abs().amax() / 127)
    found = float8.Float8Linear(w, scale, Tail(scales, bias))(float8.to_float8(x, scale))
    expected = x @ w.t() + bias
    assert float((found - expected).norm() / expected.norm()) < 0.05  # three bits of mantissa


def test_on_a_cpu_the_reference_serves_and_nothing_is_timed() -> None:
    x, w, scales, bias = problem()
    tail = tails(scales, bias)["gelu"]
    codes = quantise(w, scales[:, None])
    chooser = Chooser(CPU)
    for _ in range(2):
        made = chooser.build(codes, tail, ROWS, is_sparse=True)
        assert isinstance(made, dense.DenseLinear)
        assert made(quantise(x, S_X)).dtype == torch.int8
    assert [(a.shape, a.best(), a.microseconds) for a in chooser.answers] == [((ROWS, N, K), "dense", {})]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_the_version_is_that_of_the_library_that_is_loaded(tmp_path: Path) -> None:
    source, library = tmp_path / "stub.c", tmp_path / "libcusparseLt.so.0"
    numbers = "int parts[] = {0, 9, 2}; int cusparseLtGetProperty(int part, int *value)"
    source.write_text(f"{numbers} {{ *value = parts[part]; return 0; }}\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    maps = f"7f00-7f01 r-xp 00000000 00:00 1   /lib/libc.so.6\n7f02-7f03 r-xp 00000000 00:00 2   {library}\n"
    assert sparse.library_version(maps) == 902
    assert sparse.library_version(maps.splitlines()[0]) is None


class Timed(Chooser):
    """A chooser whose times are given by kind of module; a kind without one fails."""

    def __init__(self, microseconds: dict[str, float], store: Path | None = None) -> None:
        super().__init__(CPU, store=store)
        self._timed, self.operators = True, sparse.Operators.find(CPU)
        self.microseconds, self.timings = microseconds, 0

    def _seconds(self, module: torch.nn.Module, x: torch.Tensor) -> float:
        self.timings += 1
        return self.microseconds[type(module).__name__] * 1e-6


@pytest.fixture
def searched(cusparselt: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *given: 7)
    monkeypatch.setattr("gpusq_onnx.runtime.kernels.choose.find_spec", lambda name: None)  # no Triton


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize(("dense_time", "expected"), [(9.0, sparse.SparseLinear), (3.0, dense.DenseLinear)])
def test_a_sparse_kernel_that_does_not_pay_gives_way(dense_time: float, expected: type) -> None:
    _, w, scales, bias = problem()
    codes, tail = quantise(w, scales[:, None]), tails(scales, bias)["gelu"]
    chooser = Timed({"SparseLinear": 5.0, "DenseLinear": dense_time})
    made = chooser.build(codes, tail, ROWS, is_sparse=True)
    assert type(made) is expected
    if isinstance(made, sparse.SparseLinear):
        assert made.algorithm.number == 7
    assert type(chooser.build(codes, tail, ROWS, is_sparse=True, ways=("dense", "fused"))) is dense.DenseLinear
    (answer,) = chooser.answers
    assert answer.microseconds == {"sparse": 5.0, "dense": dense_time}
    assert answer.refused == {"fused": "Triton is not installed"}
    assert chooser.timings == 2  # asked twice, timed once


@pytest.mark.usefixtures("searched")
def test_a_way_that_fails_is_out_and_says_why() -> None:
    _, w, scales, bias = problem()
    chooser = Timed({"DenseLinear": 3.0})
    tail = tails(scales, bias)["gelu"]
    made = chooser.build(quantise(w, scales[:, None]), tail, ROWS, is_sparse=True)
    assert isinstance(made, dense.DenseLinear)
    assert "KeyError" in chooser.answers[0].refused["sparse"]
    unpruned = quantise(torch.randn(N, K), torch.tensor(0.02))
    chooser.build(unpruned, tail, ROWS, is_sparse=False)
    assert chooser.answers[1].refused["sparse"] == "the weight is not 2:4"


@pytest.mark.usefixtures("searched")
def test_answers_are_kept_and_a_broken_file_is_none(tmp_path: Path) -> None:
    _, w, scales, bias = problem()
    codes, tail = quantise(w, scales[:, None]), tails(scales, bias)["gelu"]
    store, times = tmp_path / "cache" / "kernels.json", {"SparseLinear": 5.0, "DenseLinear": 9.0}
    first = Timed(times, store).ask(codes, tail, ROWS, is_sparse=True)
    again = Timed({}, store)
    assert again.ask(codes, tail, ROWS, is_sparse=True) == first and again.timings == 0
    other = Timed(times, store)
    other.ask(codes, tail, ROWS + 1, is_sparse=True)
    assert other.timings == 2  # another shape is another question
    for text in ("{", "[]", "[" * 9999, store.read_text().replace("microseconds", "seconds")):
        store.write_text(text)
        rebuilt = Timed(times, store)
        assert rebuilt.ask(codes, tail, ROWS, is_sparse=True) == first and rebuilt.timings == 2
    store.chmod(0o666)  # anybody may have put his answers there
    rebuilt = Timed(times, store)
    assert rebuilt.ask(codes, tail, ROWS, is_sparse=True) == first and rebuilt.timings == 2
    assert [path.name for path in store.parent.iterdir()] == ["kernels.json"]
