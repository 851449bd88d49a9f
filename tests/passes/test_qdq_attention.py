"""INT8 attention in all forms: both products have their pairs, and the model computes nearly the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto

import gpusq_onnx
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from tests.graph.attention_graphs import BLEND, CONTEXT, LEARNED, SCORES, SOFTMAX, TURNED, attention
from tests.graph.small_graphs import normal, run

FORMS = {**TURNED, "as is usual": [*SCORES, *SOFTMAX, *CONTEXT], "learned queries": LEARNED, "a blend": BLEND}
X = normal(16, 16, 64, seed=3)


@pytest.mark.parametrize("form", FORMS)
def test_every_operand_of_both_products_has_its_pair(form: str, tmp_path: Path) -> None:
    made, output = _written(FORMS[form], tmp_path), tmp_path / "q.onnx"
    found = gpusq_onnx.compress(made, "qdq-int8", data={"x": X}, output=output)
    rows = {row.role: row for row in found.rows if row.role in ("Q", "K", "softmax", "V", "product")}
    assert set(rows) == {"Q", "K", "softmax", "V"}
    assert not any(row.skipped for row in rows.values())
    structure = analyse(io.load(output))
    (core,) = structure.attentions
    for product in (core.scores, core.context):
        assert [tensor.inputs[0].op for tensor in product.inputs] == ["DequantizeLinear"] * 2
    largest = 127 * float(core.context.inputs[0].inputs[0].inputs[1].values)
    assert 0.1 < largest <= 1.001, "the scale of probabilities ends at 1 or before"
    before, after = (np.concatenate([run(path, {"x": X[i : i + 2]})["y"] for i in range(0, 16, 2)])
                     for path in (made, output))  # fmt: skip
    assert _cosine(before, after) >= 0.998


def test_learned_queries_take_their_scale_from_their_values(tmp_path: Path) -> None:
    """The operand's row is the constant's only one: no other row has it in a pass that quantises attention."""
    made, output = _written(LEARNED, tmp_path), tmp_path / "q.onnx"
    found = gpusq_onnx.compress(made, "qdq-int8{clip=absmax}", data={"x": X}, output=output)
    (row,) = (row for row in found.rows if row.tensor == "learned")
    assert (row.role, row.decision) == ("Q", "quantise activation")
    assert row.reason == "operand Q of an attention product: learned, absmax clip"
    (core,) = analyse(io.load(output)).attentions
    scale = float(core.scores.inputs[0].inputs[0].inputs[1].values)
    stored = next(t for t in made_constants(made) if t.name == "learned")
    assert scale == pytest.approx(float(np.abs(onnx.numpy_helper.to_array(stored)).max()) / 127)


@pytest.mark.parametrize("passes", ["qdq-int8{attention=false}", "prune24"])
def test_learned_queries_that_stay_have_a_row(passes: str, tmp_path: Path) -> None:
    made = _written(LEARNED, tmp_path)
    found = gpusq_onnx.compress(made, passes, data={"x": X}, output=tmp_path / "q.onnx")
    (row,) = (row for row in found.rows if row.tensor == "learned")
    assert row.skipped
    assert row.reason in ("attention=false", "learned queries, Q of attention: no weight of a layer")


def test_float_formats_take_learned_queries_too(tmp_path: Path) -> None:
    made, output = _written(LEARNED, tmp_path), tmp_path / "q.onnx"
    found = gpusq_onnx.compress(made, "qdq-fp8", data={"x": X}, output=output)
    assert {row.decision for row in found.rows if row.role in ("Q", "K", "softmax", "V")} == {"quantise activation"}
    (core,) = analyse(io.load(output)).attentions
    assert core.scores.inputs[0].inputs[0].op == "DequantizeLinear"


def made_constants(path: Path) -> list[onnx.TensorProto]:
    return list(onnx.load(path).graph.initializer)


def _written(middle: list[NodeProto], folder: Path) -> Path:
    onnx.save(attention(middle), folder / "m.onnx")
    return folder / "m.onnx"


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
