"""fold: computed weights are found by the passes after it, a model without any is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched, UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.ort import Session

ASSETS = Path(__file__).parents[1] / "assets"
NO_DATA = DataOptions()


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model without what its exporter measures of shapes and that is known."""
    path = tmp_path_factory.mktemp("folded") / "folded.onnx"
    manager.run(ASSETS / "digits_vit.onnx", path, parse("fold"), RunOptions(NO_DATA))
    return path


@pytest.fixture
def scaled(folded: Path, tmp_path: Path) -> Path:
    """The embedded model with every fc1 weight as the product of two constants."""
    model = onnx.load_model(str(folded))
    names = [site.name for site in analyse(io.load(folded)).sites if site.role == "fc1"]
    for tensor in [t for t in model.graph.initializer if t.name in names]:
        w = numpy_helper.to_array(tensor)
        scale = np.exp2(np.arange(w.shape[-1]) % 3).astype(np.float32)
        product = tensor.name
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{product}.scale"))
        tensor.CopyFrom(numpy_helper.from_array(w / scale, f"{product}.unscaled"))
        made = helper.make_node("Mul", [f"{product}.unscaled", f"{product}.scale"], [product], name=f"scale {product}")
        model.graph.node.insert(0, made)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, str(path))
    return path


def _fc1(path: Path) -> list[str]:
    return [site.role for site in analyse(io.load(path)).sites if site.role == "fc1"]


def test_computed_weights_are_pruned_once_folded(scaled: Path) -> None:
    assert _fc1(scaled) == []
    outcome = manager.run(scaled, scaled.with_name("out.onnx"), parse("fold,prune24"), RunOptions(NO_DATA))
    fold, prune = outcome.steps
    assert [row.decision for row in fold.rows] == ["fold"] * 3
    assert fold.findings["nodes_removed"] == 3
    assert [row.role for row in prune.rows if not row.skipped].count("fc1") == 3


def test_folding_changes_no_output(scaled: Path) -> None:
    output = scaled.with_name("out.onnx")
    manager.run(scaled, output, parse("fold"), RunOptions(NO_DATA))
    assert len(_fc1(output)) == 3
    image = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    before, after = (Session(path).run({"pixel_values": image})["logits"] for path in (scaled, output))
    np.testing.assert_array_equal(after, before)


def test_nothing_to_fold_is_an_error_unless_it_is_allowed(folded: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with pytest.raises(NothingMatched, match="nothing can be folded"):
        manager.run(folded, output, parse("fold"), RunOptions(NO_DATA))
    assert list(tmp_path.iterdir()) == []
    manager.run(folded, output, parse("fold"), RunOptions(NO_DATA, allow_noop=True))
    assert output.is_file()


def test_the_limit_is_an_option(scaled: Path) -> None:
    outcome = manager.plan(scaled, parse("fold{growth=0}"), RunOptions(NO_DATA))
    assert [row.decision for row in outcome.steps[0].rows] == ["fold"] * 3, "a product is as large as its source"


def test_a_model_with_illegal_pairs_is_refused_and_nobody_blamed(tmp_path: Path) -> None:
    model = onnx.load_model(str(ASSETS / "digits_vit_legacy17.onnx"))
    first = model.graph.node[0].input[0]
    pair = [
        helper.make_node("QuantizeLinear", [first, "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
    ]
    for node in reversed(pair):
        model.graph.node.insert(0, node)
    model.graph.node[2].input[0] = "d"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(128), "z"))
    source = tmp_path / "m.onnx"
    onnx.save_model(model, str(source))
    with pytest.raises(UnsupportedModelError, match="UINT8"):
        manager.run(source, tmp_path / "o.onnx", parse("fold"), RunOptions(NO_DATA))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
