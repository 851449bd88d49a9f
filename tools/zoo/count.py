"""How many products with a constant weight a model runs, and how many of their MACs are INT8: the independent count.

It shares no code with `gpusq_onnx`, so that an error there is not repeated here. Nothing is recognised: an operand is
constant where no graph input reaches it, and shapes and types are those of one run in onnxruntime with all tensors
as outputs, at batch 1, optimisation off.

    python -m tools.zoo.count MODEL.onnx [INPUT=1x3x224x224 ...]

Limits: products inside the branches of If and Loop are not counted, but their number is reported.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"}
MOVES = {"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"}
"""A weight or an activation that only moves between its DequantizeLinear and the product is still INT8."""


@dataclass(frozen=True)
class Product:
    """One product: `out` and `k` are a group's output channels and reduced elements; `macs` are those of a run."""

    node: str
    result: str
    op: str
    weight: str
    out: int
    k: int
    macs: int
    int8: bool


@dataclass(frozen=True)
class Count:
    """All products of a model; `inner` products lie in subgraphs and are not among them."""

    products: list[Product]
    inner: int

    def linears(self, side: int = 64) -> list[Product]:
        """The products whose both sides are at least `side`."""
        return [p for p in self.products if min(p.out, p.k) >= side]

    def share(self, side: int = 64) -> float:
        """The share of the MACs of `linears` that is INT8; 1 where there are none."""
        linears = self.linears(side)
        total = sum(p.macs for p in linears)
        return sum(p.macs for p in linears if p.int8) / total if total else 1.0


def count(path: Path, shapes: dict[str, list[int]] | None = None) -> Count:
    """Count a model's products.

    Args:
        path: the model; external data lies beside it.
        shapes: of inputs whose dimensions other than the first are dynamic.

    Raises:
        ValueError: an input has a dynamic dimension that `shapes` does not give.
    """
    model = onnx.load(path)
    graph = model.graph
    constants = {i.name for i in graph.initializer}
    depends = {i.name for i in graph.input} - constants
    feeds = {i.name: _feed(i, shapes or {}) for i in graph.input if i.name not in constants}
    for node in graph.node:
        if depends & (set(node.input) | _outer(node)):
            depends.update(o for o in node.output if o)
    made = {o: node for node in graph.node for o in node.output if o}
    found = {i.name: (tuple(i.dims), i.data_type) for i in graph.initializer}
    found |= {k: (v.shape, onnx.helper.np_dtype_to_tensor_dtype(v.dtype)) for k, v in feeds.items()}
    found |= _run(model, path, [n for n in made if n not in found], feeds)
    inner = sum(_inside(a.g) for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH)
    return Count([p for n in graph.node if (p := _product(n, depends, made, found))], inner)


def _feed(info: onnx.ValueInfoProto, shapes: dict[str, list[int]]) -> np.ndarray:
    tensor = info.type.tensor_type
    dims = shapes.get(info.name) or [d.dim_value or (1 if i == 0 else 0) for i, d in enumerate(tensor.shape.dim)]
    if 0 in dims:
        raise ValueError(f"input {info.name}: shape {dims} is not fixed (0 is a dynamic dimension); give its shape")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    noise = np.random.default_rng(0).standard_normal(dims)
    return noise.astype(dtype) if np.issubdtype(dtype, np.floating) else np.ones(dims, dtype)


def _run(
    model: onnx.ModelProto, path: Path, names: list[str], feeds: dict[str, np.ndarray]
) -> dict[str, tuple[tuple[int, ...], int]]:
    bare = onnx.load(path, load_external_data=False)
    del bare.graph.output[:]
    bare.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    beside = path.with_name(f"{path.stem}.counted.onnx")  # beside the model: external data is found from there
    onnx.save(bare, beside)
    try:
        session = onnxruntime.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])
        values = session.run(names, feeds)
    finally:
        beside.unlink()
    arrays = {n: v for n, v in zip(names, values, strict=True) if isinstance(v, np.ndarray)}
    return {n: (v.shape, onnx.helper.np_dtype_to_tensor_dtype(v.dtype)) for n, v in arrays.items()}


def _product(
    node: onnx.NodeProto,
    depends: set[str],
    made: dict[str, onnx.NodeProto],
    found: dict[str, tuple[tuple[int, ...], int]],
) -> Product | None:
    operands = list(node.input) if node.op_type == "Einsum" else list(node.input[:2])
    fixed = [name for name in operands if name not in depends]
    if node.op_type not in PRODUCTS or len(fixed) != 1 or len(operands) != 2:
        return None
    weight, given = fixed[0], {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    shape, result = found[weight][0], found[node.output[0]][0]
    if node.op_type == "Einsum":
        out, k, macs = _einsum(given["equation"].decode(), [found[n][0] for n in operands], operands.index(weight))
    elif node.op_type == "Conv":
        out, k = shape[0] // given.get("group", 1), math.prod(shape[1:])
        macs = math.prod(result) * k
    elif node.op_type == "ConvTranspose":
        groups = given.get("group", 1)
        out, k = math.prod(shape[1:]), shape[0] // groups
        macs = math.prod(found[operands[0]][0]) * out
    else:
        first = operands.index(weight) == 0
        turned = node.op_type == "Gemm" and bool(given.get("transA" if first else "transB", 0))
        rows, columns = (shape if len(shape) > 1 else (shape[0], 1))[-2:]
        k, out = (columns, rows) if first != turned else (rows, columns)
        macs = math.prod(result) * k
    int8 = all(_is_int8(name, made, found) for name in operands)
    return Product(node.name, node.output[0], node.op_type, weight, out, k, macs, int8)


def _einsum(equation: str, shapes: list[tuple[int, ...]], weight: int) -> tuple[int, int, int]:
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    size: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        letters = term.replace("...", "")
        head = len(term.partition("...")[0]) if "..." in term else 0
        spare = len(shape) - len(letters)
        size |= {f"...{i}": n for i, n in enumerate(reversed(shape[head : head + spare]))}
        size |= dict(zip(letters, shape[:head] + shape[head + spare :], strict=True))
    mine, other = set(terms[weight]) - {"."}, set(terms[1 - weight])
    out = math.prod(size[c] for c in mine if c in right and c not in other)
    return out, math.prod(size[c] for c in mine if c not in right), math.prod(size.values())


def _is_int8(name: str, made: dict[str, onnx.NodeProto], found: dict[str, tuple[tuple[int, ...], int]]) -> bool:
    node = made.get(name)
    while node is not None and node.op_type in MOVES:
        node = made.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear" and found[node.input[0]][1] == onnx.TensorProto.INT8


def _inside(graph: onnx.GraphProto) -> int:
    deeper = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return sum(n.op_type in PRODUCTS for n in graph.node) + sum(map(_inside, deeper))


def _outer(node: onnx.NodeProto) -> set[str]:
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for g in graphs for n in g.node for name in (set(n.input) | _outer(n))}


if __name__ == "__main__":
    given = dict(word.split("=") for word in sys.argv[2:])
    counted = count(Path(sys.argv[1]), {name: [int(n) for n in dims.split("x")] for name, dims in given.items()})
    for p in counted.products:
        print(f"{p.op:13} [{p.out}, {p.k}] {p.macs:>13} {'INT8 ' if p.int8 else 'float'} {p.node} {p.weight}")
    print(
        f"{counted.share():.2%} of the MACs of {len(counted.linears())} Linears in INT8; {counted.inner} in subgraphs"
    )
