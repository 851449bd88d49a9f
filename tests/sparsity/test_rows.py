"""Rows that a weight multiplies: a convolution is the matrix product of its rows and w[out, k]."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from gpusq_onnx.graph.views import Kernel
from gpusq_onnx.sparsity.rows import conv_rows, linear_rows


def test_linear_rows_drop_the_leading_axes() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    assert linear_rows(x).shape == (6, 4)
    assert np.shares_memory(linear_rows(x), x)


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "dilations"),
    [
        ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
        ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((3, 2), (2, 1), (1, 0, 0, 1), (1, 1)),
        ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
        ((3, 3), (1, 2), (2, 2, 2, 2), (2, 2)),
    ],
)
def test_conv_rows_times_w_is_the_convolution(
    kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...], dilations: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 8, 7)).astype(np.float32)
    stored = rng.standard_normal((5, 4, *kernel)).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, pads=pads, dilations=dilations)
    (wanted,) = ReferenceEvaluator(node).run(None, {"x": x, "w": stored})
    w = Kernel(stored.shape).forward(stored)
    found = conv_rows(x, kernel, strides, pads, dilations) @ w.T
    np.testing.assert_allclose(found, wanted.transpose(0, 2, 3, 1).reshape(-1, 5), atol=1e-4)
