"""The least that second-order pruning with the dense model beside can cost, its passes over the images apart.

    python -m tools.bench.floor MODEL IMAGES

    products    of each Linear with both sides >= 64, over the rows of all images: X^T X, D W^T, X^T E
    solving     of each of these: a Cholesky factor, its inverse, and one product with the weight

Prints the seconds of both together. Each distinct shape is timed on one batch of random rows, and counted as often as
it occurs; numpy's BLAS has all CPUs, and nothing is read or written.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import onnx

from tools.bench.cases import BATCH

SMALLEST = 64
REPEAT = 3


class Linear(NamedTuple):
    """A product's rows of one image, and its weight's sides."""

    rows: int
    k: int
    out: int


def linears(path: Path) -> Counter[Linear]:
    """The Linears of a model with an image of known size, and how often each shape occurs."""
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 2}
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    found: Counter[Linear] = Counter()
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
            continue
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        k, out = weights[node.input[1]][::-1] if turned else weights[node.input[1]]
        rows = math.prod(max(1, size) for size in shapes.get(node.output[0], [])[:-1])
        if min(k, out) >= SMALLEST:
            found[Linear(rows, k, out)] += 1
    return found


def main(arguments: list[str]) -> None:
    """Time all and print the sum."""
    path, batches = Path(arguments[0]), -(-int(arguments[1]) // BATCH)
    found = linears(path).items()
    print(sum(times * (batches * _products(linear) + _solving(linear)) for linear, times in found))


def _products(linear: Linear) -> float:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH * linear.rows, linear.k), dtype=np.float32)
    w = rng.standard_normal((linear.out, linear.k), dtype=np.float32)
    return _seconds(lambda: (x.T @ x, x.T @ (x @ w.T)))


def _solving(linear: Linear) -> float:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((linear.k, linear.k))
    w = rng.standard_normal((linear.out, linear.k), dtype=np.float32)
    gram = x @ x.T + linear.k * np.eye(linear.k)

    def solve() -> None:
        np.linalg.inv(np.linalg.cholesky(gram))
        w @ gram.astype(np.float32)

    return _seconds(solve)


def _seconds(work: Callable[[], object]) -> float:
    """Median of `REPEAT` runs, after one that does not count."""
    work()
    found = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found)


if __name__ == "__main__":
    main(sys.argv[1:])
