"""What a model costs before the passes and after them is counted alike, whatever form and types its file has."""

from pathlib import Path

import ml_dtypes
import onnx
import pytest
from onnx import TensorProto

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.workflows.baselines import given_entry
from tests.graph.small_graphs import FLOAT, node, normal, proto

K, N, ROWS = 32, 64, 16
MACS = 2 * ROWS * K * N


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """Two Einsums, of which only `canonical` makes products with weights."""
    nodes = [
        node("Einsum", ["x", "u"], ["h"], equation="bnd,de->bne"),
        node("Relu", ["h"], ["r"]),
        node("Einsum", ["r", "v"], ["y"], equation="bne,ed->bnd"),
    ]
    values, shape = {"u": normal(K, N), "v": normal(N, K)}, ["n", ROWS, K]
    onnx.save(proto(nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)], values), tmp_path / "products.onnx")
    return tmp_path / "products.onnx"


@pytest.mark.parametrize(
    ("passes", "canonical", "macs"),
    [("prune24", True, MACS), ("fp16", True, MACS), ("qdq-int8", True, MACS), ("fp16", False, 0)],
)
def test_products_that_hide_their_weights_count_before_and_after(
    passes: str, canonical: bool, macs: int, products: Path, tmp_path: Path
) -> None:
    options = RunOptions(DataOptions(), canonical=canonical)
    planned = manager.plan(products, parse(passes), options)
    done = manager.run(products, tmp_path / "out.onnx", parse(passes), options)
    for outcome in (planned, done):
        assert [cost.total["dense_macs"] for cost in (outcome.before, outcome.after)] == [macs, macs]
        assert outcome.before.total["packed_bytes"] == 2 * K * N * 4


def test_a_benchmark_counts_the_products_of_the_file_that_it_is_given(products: Path) -> None:
    assert given_entry(products).flops == pytest.approx(2 * MACS / 1e9)


@pytest.mark.parametrize("passes", ["prune24", "prune24,qdq-int8"])
def test_a_model_in_bfloat16_has_16_bits_before(passes: str, tmp_path: Path) -> None:
    kind, shape = TensorProto.BFLOAT16, ["n", ROWS, K]
    values = {"w": normal(K, N).astype(ml_dtypes.bfloat16), "v": normal(N, K).astype(ml_dtypes.bfloat16)}
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    onnx.save(proto(nodes, [("x", kind, shape)], [("y", kind, shape)], values), tmp_path / "brain.onnx")
    before = manager.plan(tmp_path / "brain.onnx", parse(passes), RunOptions(DataOptions())).before.total
    assert before["packed_bytes"] == 2 * K * N * 2
    assert before["bit_operations"] == MACS * 16 * 16
