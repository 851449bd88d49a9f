"""Sparse INT8: cuSPARSELt through torch's private `_cslt_compress` and `_cslt_sparse_mm`, found and proven at run time.

    y[M, N] = alpha[n] (w_q x_qᵀ)ᵀ + bias[n]      `transpose_result`: the sparse operand is always cuSPARSELt's left one

cuSPARSELt scales by a vector alpha and adds a vector bias in its epilogue, and writes INT8, FP16 or BF16; or INT32,
then unscaled. Which of these combinations this torch, this library and this GPU compute correctly is found by trying
each on a small problem (`Operators.find`), not by version numbers. With INT8 out, alpha and bias are divided by the
output's scale, so the product is quantised in the same kernel; a bias that cannot go in keeps the output in float.

The algorithm is searched once a shape (`search`: algorithm, split-k and its mode through torch's cuSPARSELt module
where it has one, else the algorithm alone). Limits: N and K multiples of 32; rows are padded to 16.
Source: torch aten/src/ATen/native/sparse/cuda/cuSPARSELtOps.cpp; cuSPARSELt "Supported Features".
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gpusq_onnx.runtime.kernels.arithmetic import HIGH, LOW, Tail, dequantise, padded_rows

SIDE, ROWS = 32, 16
_OUTPUTS = (torch.int8, torch.bfloat16, torch.float16, torch.int32)


@dataclass(frozen=True)
class Algorithm:
    """What `_cslt_sparse_mm` receives: an algorithm's number, split-k and its mode; the defaults are the library's."""

    number: int = 0
    split_k: int = 1
    mode: int = -1


@dataclass(frozen=True)
class Operators:
    """What works here.

    Attributes:
        outputs: output types that are correct with a vector alpha (INT32: with none) and no bias.
        bias: by output type, the type in which a bias vector must come; missing: it cannot come at all.
        version: of the cuSPARSELt that is loaded, e.g. 800 for 0.8.0; None where it is not known.
    """

    outputs: frozenset[torch.dtype]
    bias: dict[torch.dtype, torch.dtype]
    version: int | None = None

    @staticmethod
    def find(device: torch.device) -> Operators | str:
        """Try everything on a small problem on `device`; a sentence that says why where nothing works."""
        missing = [name for name in ("_cslt_compress", "_cslt_sparse_mm") if not hasattr(torch, name)]
        if missing:
            return f"torch {torch.__version__} has no {' and no '.join(missing)}"
        try:
            problem = _Problem.on(device)
        except (RuntimeError, NotImplementedError) as error:  # built without cuSPARSELt, or a GPU that it does not know
            return f"cuSPARSELt does not work here: {str(error).splitlines()[0].split('. ')[0]}"
        outputs = frozenset(kind for kind in _OUTPUTS if problem.right(kind, None))
        if not outputs:
            return "cuSPARSELt computes none of its INT8 products correctly here"
        bias = {}
        for kind in outputs - {torch.int32}:
            if given := next((given for given in (torch.float32, kind) if problem.right(kind, given)), None):
                bias[kind] = given
        return Operators(outputs, bias, _version())

    def float_output(self, wanted: torch.dtype) -> torch.dtype:
        """The type in which a product that stays float leaves the kernel: `wanted`, or the next best."""
        order = (wanted, torch.bfloat16, torch.float16, torch.int32)
        return next(kind for kind in order if kind in self.outputs)


class SparseLinear(nn.Module):
    """INT8 codes [M, K] to the tail's result [M, N], the weight 2:4.

    Args:
        codes: the weight's INT8 codes [N, K], at most 2 of each 4 along K not zero.
        tail: what follows the product.
        operators: what works on this device.
        algorithm: see `search`.
    """

    compressed: Tensor
    alpha: Tensor | None
    bias: Tensor | None

    def __init__(self, codes: Tensor, tail: Tail, operators: Operators, algorithm: Algorithm = Algorithm()) -> None:
        super().__init__()
        self.n = codes.shape[0]
        self.register_buffer("compressed", torch._cslt_compress(codes.contiguous()))
        self.tail, self.algorithm = tail, algorithm
        step = tail.first_step  # of the quantiser that follows the bias directly
        fits = torch.int8 in operators.outputs and (tail.bias is None or torch.int8 in operators.bias)
        self.output = torch.int8 if step is not None and fits else operators.float_output(tail.dtype)
        inside = operators.bias.get(self.output) if tail.bias is not None else None
        alpha, bias = tail.alpha, tail.bias
        if self.output == torch.int8 and step is not None:
            alpha = alpha / step
            bias = None if bias is None else bias / step
        self.register_buffer("alpha", None if self.output == torch.int32 else alpha.contiguous())
        self.register_buffer("bias", None if inside is None or bias is None else bias.to(inside).contiguous())

    def product(self, x: Tensor) -> Tensor:
        """The kernel's own output [M, N], in the type `output`."""
        rows = x.shape[0]
        algorithm = (self.algorithm.number, self.algorithm.split_k, self.algorithm.mode)
        x = padded_rows(x, ROWS)
        y: Tensor = sparse_product(self.compressed, x, self.alpha, self.bias, self.n, self.output, *algorithm)
        return y[:rows]

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        tail = self.tail
        if self.alpha is None:
            unscaled: Tensor = tail(y)
            return unscaled
        if self.output == torch.int8:
            return y if tail.middle is None else tail.finish(dequantise(y, tail.middle))
        left = tail.bias if self.bias is None else None
        return tail.after(y.float() if left is None else y.float() + left)


@torch.library.custom_op("gpusq::sparse_product", mutates_args=())
def sparse_product(
    compressed: Tensor,
    x: Tensor,
    alpha: Tensor | None,
    bias: Tensor | None,
    n: int,
    dtype: torch.dtype,
    number: int,
    split_k: int,
    mode: int,
) -> Tensor:
    """alpha (w x)ᵀ + bias of a compressed weight [n, K] and INT8 codes `x`[M, K]: [M, n] in `dtype`.

    One opaque operator, so that torch.compile neither breaks the graph on it nor changes the layout that it needs.
    """
    out = None if dtype == torch.int8 else dtype  # INT8 is the default, and as an argument refused
    product: Tensor = torch._cslt_sparse_mm(
        compressed,
        x.contiguous().t(),
        bias=bias,
        alpha=alpha,
        out_dtype=out,
        transpose_result=True,
        alg_id=number,
        split_k=split_k,
        split_k_mode=mode,
    )
    return product


@sparse_product.register_fake
def _(
    compressed: Tensor,
    x: Tensor,
    alpha: Tensor | None,
    bias: Tensor | None,
    n: int,
    dtype: torch.dtype,
    number: int,
    split_k: int,
    mode: int,
) -> Tensor:
    return x.new_empty((x.shape[0], n), dtype=dtype)


def search(linear: SparseLinear, x: Tensor) -> Algorithm:
    """The fastest algorithm of cuSPARSELt for this Linear and input; takes a second, so results are worth keeping."""
    dense = padded_rows(x, ROWS).contiguous().t()
    out = None if linear.output == torch.int8 else linear.output
    given = (linear.compressed, dense, linear.bias, linear.alpha, out, True)
    finder = getattr(getattr(torch._C, "_cusparselt", None), "mm_search", None)
    if finder is not None:
        number, split_k, mode, *_ = finder(*given)
        return Algorithm(int(number), int(split_k), int(mode))
    return Algorithm(int(torch._cslt_sparse_mm_search(*given)))


def why_not(n: int, k: int, sparse: bool) -> str | None:
    """Why this way cannot serve a weight [n, k]; None: it can."""
    if not sparse:
        return "the weight is not 2:4"
    if n % SIDE or k % SIDE:
        return f"cuSPARSELt wants multiples of {SIDE}, the weight is [{n}, {k}]"
    return None


@dataclass(frozen=True)
class _Problem:
    """A small integer product with a known result, and an alpha and a bias for it."""

    compressed: Tensor
    x: Tensor
    alpha: Tensor
    bias: Tensor
    exact: Tensor

    @staticmethod
    def on(device: torch.device) -> _Problem:
        random = torch.Generator().manual_seed(24)
        n, k, rows = 64, 128, 48
        w = torch.randint(-9, 10, (n, k), generator=random, dtype=torch.int8)
        w.view(n, k // 4, 4)[:, :, 1::2] = 0
        x = torch.randint(-9, 10, (rows, k), generator=random, dtype=torch.int8)
        alpha = torch.rand(n, generator=random) * 0.02 + 0.01
        bias = torch.rand(n, generator=random) * 20 - 10
        exact = x.double() @ w.double().t()
        on = [tensor.to(device) for tensor in (w, x, alpha, bias, exact)]
        return _Problem(torch._cslt_compress(on[0]), *on[1:])

    def right(self, kind: torch.dtype, bias: torch.dtype | None) -> bool:
        """Whether the product in `kind`, with a bias in the type `bias`, is what it should be."""
        given = None if bias is None else self.bias.to(bias)
        alpha = None if kind == torch.int32 else self.alpha
        expected = self.exact if alpha is None else self.exact * alpha
        expected = expected if bias is None else expected + self.bias
        try:
            found = sparse_product(self.compressed, self.x, alpha, given, len(self.bias), kind, 0, 1, -1)
        except (RuntimeError, NotImplementedError):
            return False
        if kind == torch.int8:
            expected = expected.clamp(LOW, HIGH)
        # to the nearest integer, to the last bit, or to two digits (BF16 has eight bits)
        most = {torch.int8: 0.501, torch.int32: 0.0}.get(kind, 0.01 * float(expected.abs().max()))
        return found.shape == expected.shape and bool((found.double() - expected).abs().max() <= most)


def library_version(maps: str) -> int | None:
    """The version of the cuSPARSELt that this process has loaded, 800 for 0.8.0.

    torch tells the one that it was built with; another may have been loaded in its place (LD_PRELOAD).

    Args:
        maps: the text of /proc/self/maps.
    """
    paths = [line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libcusparseLt" in line]
    if not paths:
        return None
    library, numbers = ctypes.CDLL(paths[0]), []
    for part in range(3):  # MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL
        value = ctypes.c_int()
        if library.cusparseLtGetProperty(part, ctypes.byref(value)):
            return None
        numbers.append(value.value)
    major, minor, patch = numbers
    return 1000 * major + 100 * minor + patch


def _version() -> int | None:
    maps = Path("/proc/self/maps")
    found = library_version(maps.read_text(encoding="utf-8")) if maps.is_file() else None
    reported = torch.backends.cusparselt.version() if hasattr(torch.backends, "cusparselt") else None
    return found if found is not None or reported is None else int(reported)
