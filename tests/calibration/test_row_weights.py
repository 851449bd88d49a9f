"""What rows count for: of a graph that looks at its first token only, and of one that is no classifier."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.calibration.row_weights import FLOOR, RowWeights, classifies
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import find_sites
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.passes.prune import Prune24
from gpusq_onnx.pipeline.base import PlanContext

pytest.importorskip("torch")
TOKENS, IMAGES = 3, 6


def first_token(folder: Path, batch: int | str, *, pooled: bool = True) -> tuple[Model, Source]:
    """y = softmax((x A)[:, 0] B), x [batch, 3, 4]; not pooled: y = x A B, a map."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["m"]),
        helper.make_node("Gather", ["m", "zero"], ["t"], axis=1),
        helper.make_node("MatMul", ["t" if pooled else "m", "B"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"]),
    ]
    shapes = [batch, TOKENS, 4], [batch, 5] if pooled else [batch, TOKENS, 5]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in zip("xy", shapes, strict=True)]
    given = {"A": rng.standard_normal((4, 4)), "B": rng.standard_normal((4, 5))}
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in given.items()]
    constants.append(numpy_helper.from_array(np.array(0), "zero"))
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), folder / "m.onnx")
    np.save(folder / "x.npy", rng.standard_normal((IMAGES, TOKENS, 4)).astype(np.float32))
    spec = InputSpec("x", np.dtype(np.float32), tuple(shapes[0]))
    return io.load(folder / "m.onnx"), open_source(DataOptions(path=folder / "x.npy"), [spec])


@pytest.mark.parametrize("batch", ["n", 4])
def test_only_the_token_that_is_looked_at_counts(batch: int | str, tmp_path: Path) -> None:
    """A fixed batch of 4 is filled up for the last two images: what fills it counts nowhere."""
    model, source = first_token(tmp_path, batch)
    (tmp_path / "weights").mkdir()
    assert classifies(model)
    sites = find_sites(model)[:1]
    weights = RowWeights(model, sites, source, 4, tmp_path / "weights", seed=0)
    found = np.concatenate(list(weights.of(sites[0]))).reshape(IMAGES, TOKENS)
    np.testing.assert_allclose(found[:, 1:], FLOOR / (1 + FLOOR), rtol=1e-6)
    np.testing.assert_allclose(found.mean(), 1, rtol=1e-5)
    assert (found[:, 0] > 1).any() and len(set(found[:, 0])) == IMAGES


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    model, source = first_token(tmp_path, "n", pooled=False)
    assert not classifies(model)
    with pytest.raises(UnsupportedModelError, match="this is none"):
        RowWeights(model, find_sites(model), source, 4, tmp_path, seed=0)


@pytest.mark.parametrize("options", [{"rows": "fisher"}, {"rows": "fisher", "method": "sparsegpt"}])
def test_and_that_before_anything_has_run(options: dict[str, object], tmp_path: Path) -> None:
    model, _ = first_token(tmp_path, "n", pooled=False)
    structure, data = analyse(model), PlanContext(data=True)
    with pytest.raises(UnsupportedModelError, match="this is none"):
        Prune24(Prune24.Options(**options)).plan(model, structure, data)
    assert Prune24(Prune24.Options(rows="auto", smallest=1)).plan(model, structure, data)


def test_magnitude_asks_for_no_classifier(tmp_path: Path) -> None:
    model, _ = first_token(tmp_path, "n", pooled=False)
    assert Prune24(Prune24.Options(rows="fisher", smallest=1)).plan(model, analyse(model), PlanContext())
