"""Is every kernel right? Each way, at each of its settings, against the exact reference on ViT shapes and every tail.

    python -m tools.gpu.exact --way sparse [--device cuda] [--models vit_base] [--batch 1,32] --out exact.json

    dense, fused, sparse   INT8 codes [M, K] x [N, K] and the tail, against the integer sum in FP64 and the same tail
    fp8                    E4M3 values, against the product in FP64 of what they stand for
    attention              between quantisers, against torch in FP32, where its sums are exact

Needs torch and numpy alone. A way that cannot serve a shape is listed with the reason. Exit code 1 where one
is wrong or crashes. A kernel that breaks the CUDA context breaks what follows in its process: one way a process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpusq_onnx.runtime.kernels import attention, float8
from gpusq_onnx.runtime.kernels.arithmetic import Tail
from gpusq_onnx.runtime.kernels.choose import WAYS, Chooser
from tools.bench.formats import Exact, allowed, difference
from tools.bench.models import MODELS

KINDS = ("float", "gelu", "codes", "both")
CRASHED = "CUDA error"  # in what torch raises after a kernel that broke the context
HEADS = {"cuda": (17, 197, 512), "cpu": (17,)}
Row = dict[str, Any]


def codes(rows: int, k: int, device: torch.device, *, pruned: bool = False) -> Tensor:
    """int8 [rows, k] from -127 to 127; 2:4 along k where `pruned`."""
    made = torch.randint(-127, 128, (rows, k), generator=torch.Generator().manual_seed(rows + k), dtype=torch.int8)
    if pruned:
        made.view(rows, k // 4, 4)[:, :, 1::2] = 0
    return made.to(device)


def tail(n: int, kind: str, device: torch.device) -> Tail:
    """What can follow a product: a float result; GELU and codes; codes; Q/DQ, GELU and codes."""
    random = torch.Generator().manual_seed(n)
    alpha, bias = torch.rand(n, generator=random) * 1e-5 + 1e-6, torch.randn(n, generator=random)
    middle, out = torch.tensor(0.05), torch.tensor(0.03)
    made = {
        "float": Tail(alpha, bias, dtype=torch.bfloat16),
        "gelu": Tail(alpha, bias, activation="gelu", out=out),
        "codes": Tail(alpha, bias, out=middle),
        "both": Tail(alpha, bias, middle=middle, activation="gelu", out=out),
    }
    return made[kind].to(device)


def linears(way: str, shapes: list[tuple[int, int, int]], chooser: Chooser) -> Iterator[Row]:
    """Every setting of one way on [M, N, K], with every tail."""
    for rows, n, k in shapes:
        if reason := chooser.why_not(way, n, k, is_sparse=True):
            yield {"case": f"{rows}x{n}x{k}", "refused": reason}
            continue
        weight, given = codes(n, k, chooser.device, pruned=True), codes(rows, k, chooser.device)
        for kind in KINDS:
            after = tail(n, kind, chooser.device)
            expected = Exact(weight, after)(given)
            for number, build in enumerate(chooser.candidates(way, weight, after, given)):
                yield _row(f"{rows}x{n}x{k} {after.kind}, setting {number}", lambda: build()[0](given), expected)  # noqa: B023


def eight_bits(shapes: list[tuple[int, int, int]], device: torch.device) -> Iterator[Row]:
    """FP8 on [M, N, K]."""
    random = torch.Generator().manual_seed(0)
    for rows, n, k in shapes:
        if reason := float8.why_not(n, k, device):
            yield {"case": f"{rows}x{n}x{k}", "refused": reason}
            continue
        x, w = torch.randn(rows, k, generator=random), torch.randn(n, k, generator=random) * k**-0.5
        bias, scale = torch.randn(n, generator=random), float8.float8_scale(x.abs().amax() / 127)
        linear = float8.Float8Linear(w, scale, Tail(torch.ones(n), bias, dtype=torch.bfloat16))
        given = float8.to_float8(x, scale)
        stands_for = linear.codes.double() * linear.row_scale.double().t()
        expected = (given.double() * scale.double()) @ stands_for.t() + bias
        linear, given, expected = linear.to(device), given.to(device), expected.to(device, torch.bfloat16)
        yield _row(f"{rows}x{n}x{k}", lambda: linear(given), expected)  # noqa: B023


def heads(device: torch.device) -> Iterator[Row]:
    """Attention at several lengths, into floats and into codes."""
    for tokens in HEADS[device.type]:
        q, k, v = (codes(2 * 3 * tokens, 64, device).reshape(2, 3, tokens, 64) for _ in range(3))
        scales = torch.tensor([0.02, 0.015, 1 / 127, 0.03], device=device)
        for name, out in {"bfloat16": None, "int8": torch.tensor(0.01, device=device)}.items():
            expected = attention.reference(q, k, v, scales, out, torch.bfloat16)
            call: Callable[[], Tensor] = lambda: attention.attention(q, k, v, scales, out, torch.bfloat16)  # noqa: B023, E731
            yield _row(f"{tokens} tokens into {name}", call, expected)


def _row(case: str, call: Callable[[], Tensor], expected: Tensor) -> Row:
    try:
        found = call()
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return {"case": case, "ok": False, "reason": f"{found.dtype} {list(found.shape)}"}
        wrong, most = difference(found, expected), allowed(found, 0.01)
    except Exception as error:  # a tile that does not fit, a shape that a library refuses; or a kernel that crashed
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return {"case": case, "ok": False, "reason": reason} if CRASHED in reason else {"case": case, "refused": reason}
    return {"case": case, "ok": wrong < most, "difference": wrong}


def main(arguments: list[str] | None = None) -> int:
    """Check, write, and say what is wrong."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    batches = [int(text) for text in options.batch.split(",")]
    models = [MODELS[name] for name in options.models.split(",")]
    found = {(batch * tokens, n, k) for m in models for tokens, n, k, _ in m.products.values() for batch in batches}
    shapes, chooser = sorted(found), Chooser(device)
    results: dict[str, list[Row]] = {}
    with torch.no_grad():
        for way in options.way.split(","):
            special = {"fp8": lambda: eight_bits(shapes, device), "attention": lambda: heads(device)}
            rows = special[way]() if way in special else linears(way, shapes, chooser)
            results[way] = list(rows)
    wrong = [f"{way}: {row}" for way, rows in results.items() for row in rows if row.get("ok") is False]
    print("\n".join(wrong) or "all exact")
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.exact", description=__doc__.splitlines()[0])
    parser.add_argument("--way", default=",".join([*WAYS, "fp8", "attention"]), help="which kernels, comma-separated")
    parser.add_argument("--models", default="vit_base", help="whose shapes, comma-separated")
    parser.add_argument("--batch", default="1,32", help="batch sizes, comma-separated")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
