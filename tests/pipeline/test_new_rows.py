"""A number format, a scheme and a pattern are one row each: nothing else knows them, and every part works with them."""

from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.graph import io
from gpusq_onnx.graph.pack.archive import pack_model, unpack_model
from gpusq_onnx.graph.qdq.codes import codes_of, quantised
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import grammar, manager
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.quant import formats, schemes
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.sparsity import patterns

ASSETS = Path(__file__).parents[1] / "assets"
INT6 = formats.Format("int6-in-int8", "INT6", "int8", 6, -32, 31)
ONE_OF_EIGHT = patterns.Pattern(1, 8)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats._FORMATS, INT6.name, INT6)
    monkeypatch.setitem(schemes._SCHEMES, "w6a6", schemes.Scheme("w6a6", INT6, INT6, formats.INT8))
    monkeypatch.setitem(patterns._PATTERNS, ONE_OF_EIGHT.name, ONE_OF_EIGHT)


def run(tmp_path: Path, passes: str) -> Path:
    target = tmp_path / "small.onnx"
    data = DataOptions(path=ASSETS / "digits_train.npz", samples=16)
    manager.run(ASSETS / "digits_vit_legacy17.onnx", target, grammar.parse(passes), RunOptions(data))
    return target


@pytest.mark.parametrize("more", ["", pytest.param(",qat{epochs=1,steps=2}", marks=pytest.mark.long)])
def test_a_toy_format_and_a_toy_pattern_go_all_the_way(rows: None, tmp_path: Path, more: str) -> None:
    if more:
        pytest.importorskip("torch")
    small = run(tmp_path, "prune{method=magnitude,pattern=1:8},qdq{scheme=w6a6}" + more)
    model = io.load(small)
    structure = analyse(model)
    sites = [site for site in structure.sites if site.quantised]
    assert len(sites) == 12
    for site in sites:
        assert quantised(site).weight is INT6
        assert quantised(site).input is INT6
        assert ONE_OF_EIGHT.holds(codes_of(site))
        assert np.abs(codes_of(site).astype(int)).max() <= 32
    weights = {weight.name: weight for weight in inspect_model(model).weights}
    assert all(weights[site.name].format == INT6.name and weights[site.name].patterns[0] == "1:8" for site in sites)
    packed, back = tmp_path / "small.gpusq", tmp_path / "back.onnx"
    contents = pack_model(small, packed)
    assert {weight.pattern for weight in contents.weights} == {"1:8"}
    unpack_model(packed, back)
    assert back.read_bytes() == small.read_bytes()


def test_what_the_rows_cost(rows: None, tmp_path: Path) -> None:
    pipeline = grammar.parse("prune{method=magnitude,pattern=1:8},qdq{scheme=w6a6}")
    outcome = manager.plan(ASSETS / "digits_vit_legacy17.onnx", pipeline, RunOptions(DataOptions()))
    (row,) = [row for row in outcome.steps[1].rows if row.role == "fc1" and row.tensor in outcome.after.sites][:1]
    before, after = outcome.before.sites[row.tensor], outcome.after.sites[row.tensor]
    assert after["packed_bytes"] == before["parameters"] * (6 / 8 + 3 / 8) / 8
    assert after["bit_operations"] == before["dense_macs"] * 6 * 6 / 8
