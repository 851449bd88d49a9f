"""Every form in which an exporter stores a weight, as a small model around it: what each pass must take or refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gpusq_onnx.sparsity import magnitude
from gpusq_onnx.sparsity.patterns import Pattern

Array = NDArray[Any]
Build = Callable[[Array], tuple[list[NodeProto], dict[str, Array]]]

SIDE, ROWS, SAMPLES = 32, 4, 6


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        build: the nodes from `x` to `h`, and the constants, of the weights w (float32, `shape`).
        shape: of w.
        k: w's axis along which groups of four run; None: the values of w must not change.
        x: the shape of a sample; None: [ROWS, SIDE].
        dtype: of the whole graph.
    """

    build: Build
    shape: tuple[int, ...] = (SIDE, SIDE)
    k: int | None = 0
    x: tuple[int, ...] = (ROWS, SIDE)
    dtype: Any = np.float32

    def weights(self) -> Array:
        """Random w with many values, no two of them equal."""
        w = np.random.default_rng(3).standard_normal(self.shape) / SIDE**0.5
        return w.astype(np.float16).astype(np.float32)  # so that a form that stores FP16 holds the same numbers

    def samples(self) -> Array:
        return np.random.default_rng(4).standard_normal((SAMPLES, *self.x)).astype(self.dtype)

    def model(self, w: Array) -> ModelProto:
        """x -> the form -> + bias -> ReLU -> y."""
        nodes, constants = self.build(w)
        width = SIDE if self.x[-1] == SIDE else 1
        constants |= {"bias": np.linspace(-0.1, 0.1, width, dtype=np.float32)}
        nodes = [*nodes, _node("Add", ["h", "bias"], "biased"), _node("Relu", ["biased"], "y")]
        stored = {name: v.astype(self.dtype) if v.dtype == np.float32 else v for name, v in constants.items()}
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        ends = [
            helper.make_tensor_value_info("x", kind, ["n", *self.x]),
            helper.make_tensor_value_info("y", kind, ["n", *[None] * len(self.x)]),
        ]
        initializers = [numpy_helper.from_array(value, name) for name, value in stored.items()]
        graph = helper.make_graph(nodes, "form", ends[:1], ends[1:], initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)

    def pruned(self, w: Array) -> Array:
        """w with the smaller two of each four along k at zero."""
        assert self.k is not None
        view = np.moveaxis(w, self.k, -1)
        flat = magnitude.prune(np.ascontiguousarray(view).reshape(-1, view.shape[-1]), Pattern(2, 4))
        return np.moveaxis(flat.reshape(view.shape), -1, self.k)


def _node(op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attributes)


def _matmul(w: str = "w", x: str = "x", h: str = "h") -> NodeProto:
    return _node("MatMul", [x, w], h)


def _numbers(*values: int) -> Array:
    return np.array(values, np.int64)


def _behind(*nodes: NodeProto, **stored: Callable[[Array], Array]) -> Build:
    """MatMul(x, v), v made by `nodes` of the constants `stored`."""
    return lambda w: ([*nodes, _matmul("v")], {name: make(w) for name, make in stored.items()})


def _gemm(attributes: Mapping[str, Any], stored: Callable[[Array], Array], flip: bool = False) -> Build:
    """Gemm on rows: x[n, ROWS, SIDE] is flattened, and the product put back."""

    def build(w: Array) -> tuple[list[NodeProto], dict[str, Array]]:
        rows = [_node("Reshape", ["x", "flat"], "rows")]
        if flip:
            rows.append(_node("Transpose", ["rows"], "flipped", perm=[1, 0]))
        gemm = _node("Gemm", ["flipped" if flip else "rows", "w"], "g", **attributes)
        shapes = {"flat": _numbers(-1, SIDE), "back": _numbers(-1, ROWS, SIDE)}
        return [*rows, gemm, _node("Reshape", ["g", "back"], "h")], {"w": stored(w), **shapes}

    return build


def _conv(**attributes: Any) -> Build:
    return lambda w: ([_node("Conv", ["x", "w"], "h", **attributes)], {"w": w})


def _sum_of(parts: Sequence[tuple[str, str]], *before: NodeProto) -> list[NodeProto]:
    """h = the sum of MatMul(x, part) over (input, part)."""
    products = [_matmul(part, x, f"m{index}") for index, (x, part) in enumerate(parts)]
    return [*before, *products, _node("Sum", [f"m{index}" for index in range(len(parts))], "h")]


def _taken(w: Array) -> tuple[list[NodeProto], dict[str, Array]]:
    """Names that a quantiser would give are somebody else's."""
    names = ["w_int8", "w_scale", "w_zero_point", "w_quantized", "w_dequantized", "x_scale"]
    adds = [_node("Add", ["x" if i == 0 else f"t{i - 1}", name], f"t{i}") for i, name in enumerate(names)]
    others = {name: np.full(SIDE, 0.01 * (i + 1), np.float32) for i, name in enumerate(names)}
    linear = "w_int8_2"  # a weight that already ends like that
    return [*adds, _matmul("w", f"t{len(names) - 1}", "m"), _matmul(linear, "m")], {
        "w": w,
        linear: np.eye(SIDE, dtype=np.float32)[::-1] * np.linspace(0.5, 1, SIDE, dtype=np.float32),
        **others,
    }


def _same(w: Array) -> Array:
    return w


def _t(w: Array) -> Array:
    return np.ascontiguousarray(w.T)


IMAGE = (SIDE, 5, 5)
FORMS: Mapping[str, Form] = {
    "plain": Form(lambda w: ([_matmul()], {"w": w})),
    "transpose": Form(_behind(_node("Transpose", ["w"], "v", perm=[1, 0]), w=_t)),
    "identity": Form(_behind(_node("Identity", ["w"], "v"), w=_same)),
    "transpose of identity": Form(
        _behind(_node("Identity", ["w"], "i"), _node("Transpose", ["i"], "v", perm=[1, 0]), w=_t)
    ),
    "cast": Form(_behind(_node("Cast", ["w"], "v", to=TensorProto.FLOAT), w=lambda w: w.astype(np.float16))),
    "squeeze": Form(_behind(_node("Squeeze", ["w", "axes"], "v"), w=lambda w: w[None], axes=lambda _: _numbers(0))),
    "split": Form(
        lambda w: (
            _sum_of([("x", "a"), ("x", "b"), ("x", "c")], _node("Split", ["w"], "a", "b", "c", axis=1, num_outputs=3)),
            {"w": w},
        ),
        shape=(SIDE, 3 * SIDE),
    ),
    "split after transpose": Form(
        lambda w: (
            _sum_of(
                [("x", "a"), ("x", "b")],
                _node("Transpose", ["w"], "v", perm=[1, 0]),
                _node("Split", ["v"], "a", "b", axis=1, num_outputs=2),
            ),
            {"w": w},
        ),
        shape=(2 * SIDE, SIDE),
        k=1,
    ),
    "slice": Form(
        lambda w: (
            [_node("Slice", ["w", "from", "to", "axis"], "v"), _matmul("v")],
            {"w": w, "from": _numbers(SIDE), "to": _numbers(2 * SIDE), "axis": _numbers(1)},
        ),
        shape=(SIDE, 2 * SIDE),
    ),
    "split along the reduction": Form(
        lambda w: (
            _sum_of([("x", "a"), ("x", "b")], _node("Split", ["w"], "a", "b", axis=0, num_outputs=2)),
            {"w": w},
        ),
        shape=(2 * SIDE, SIDE),
        k=None,
    ),
    "gemm": Form(_gemm({}, _same)),
    "gemm transB": Form(_gemm({"transB": 1}, _t)),
    "gemm transA": Form(_gemm({"transA": 1}, _same, flip=True), k=None),
    "gemm alpha": Form(_gemm({"alpha": 0.5}, _same)),
    "conv 1x1": Form(_conv(), shape=(SIDE, SIDE, 1, 1), k=1, x=IMAGE),
    "conv 3x3": Form(_conv(pads=[1, 1, 1, 1]), shape=(SIDE, SIDE, 3, 3), k=1, x=IMAGE),
    "conv grouped": Form(_conv(group=2), shape=(SIDE, SIDE // 2, 1, 1), k=1, x=IMAGE),
    "conv depthwise": Form(_conv(group=SIDE), shape=(SIDE, 1, 3, 3), k=None, x=IMAGE),
    "conv1d": Form(_conv(), shape=(SIDE, SIDE, 1), k=1, x=(SIDE, 6)),
    "tied": Form(
        lambda w: ([_matmul(h="m"), _node("Relu", ["m"], "r"), _matmul(x="r")], {"w": w}),
    ),
    "tied through identity": Form(
        lambda w: (
            [_node("Identity", ["w"], "v"), _matmul(h="m"), _node("Relu", ["m"], "r"), _matmul("v", "r")],
            {"w": w},
        )
    ),
    "tied in two layouts": Form(
        lambda w: (
            [
                _node("Transpose", ["w"], "v", perm=[1, 0]),
                _node("Reshape", ["x", "flat"], "rows"),
                _node("Gemm", ["rows", "w"], "g", transB=1),
                _node("Reshape", ["g", "back"], "m"),
                _matmul("v", "m"),
            ],
            {"w": w, "flat": _numbers(-1, SIDE), "back": _numbers(-1, ROWS, SIDE)},
        ),
        k=1,
    ),
    "tied along both axes": Form(
        lambda w: ([_node("Transpose", ["w"], "v", perm=[1, 0]), _matmul(h="m"), _matmul("v", "m")], {"w": w}), k=None
    ),
    "read by another operator": Form(
        lambda w: (
            [_matmul(h="m"), _node("ReduceMean", ["w"], "o", keepdims=0), _node("Add", ["m", "o"], "h")],
            {"w": w},
        ),
        k=None,
    ),
    "constant node": Form(
        lambda w: ([_node("Constant", [], "w", value=numpy_helper.from_array(w)), _matmul()], {}),
    ),
    "left operand": Form(lambda w: ([_matmul("x", "w")], {"w": w}), shape=(ROWS, ROWS), k=None),
    "three dimensions": Form(lambda w: ([_matmul()], {"w": w[None]})),
    "three dimensions, tied": Form(
        lambda w: ([_matmul(h="m"), _node("Relu", ["m"], "r"), _matmul(x="r")], {"w": w[None]}),
    ),
    "one matrix a head": Form(lambda w: ([_matmul()], {"w": w}), shape=(1, SIDE, SIDE), k=1),
    "half": Form(lambda w: ([_matmul()], {"w": w}), dtype=np.float16),
    "half transposed": Form(_behind(_node("Transpose", ["w"], "v", perm=[1, 0]), w=_t), dtype=np.float16),
    "double": Form(lambda w: ([_matmul()], {"w": w}), dtype=np.float64),
    "names taken": Form(_taken, k=None),
    "computed": Form(_behind(_node("Mul", ["w", "s"], "v"), w=_same, s=lambda _: np.float32(1.0)), k=None),
}
