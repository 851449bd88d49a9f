"""One road for what exporters write: pruned, quantised and trained, with the interface as it came."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from keras_model import SIZE, keras_vit
from noise_images import noise_images

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.ort import Session

LEARN = "steps=3 batch=4"
WHOLE = f"prune24,distill{{{LEARN}}},qdq-int8{{profile=sparse-int8}},qat{{{LEARN}}}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataOptions:
    return DataOptions(path=noise_images(tmp_path_factory.mktemp("images"), 24))


@pytest.mark.long
@pytest.mark.parametrize("uint8", [True, False])
def test_keras_through_tf2onnx(uint8: bool, data: DataOptions, tmp_path: Path) -> None:
    source, output = tmp_path / "keras.onnx", tmp_path / "out.onnx"
    before = keras_vit(source, uint8=uint8)
    outcome = manager.run(source, output, parse(WHOLE), RunOptions(data))
    assert outcome.pipeline.startswith("canonical,prune24")
    after = onnx.load_model(str(output))
    assert after.graph.input == before.graph.input
    assert "Einsum" not in {node.op_type for node in after.graph.node}
    structure = analyse(io.load(output))
    inside = [site for site in structure.sites if site.role not in ("patch_embed", "head")]
    assert len(inside) == 2 * 6
    assert all(site.quantised == "qdq" for site in inside)
    assert len(structure.attentions) == 2
    if uint8:
        pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
        (logits,) = Session(output, optimize=False).run({"x": pixels}).values()
        assert logits.shape == (3, 10) and np.isfinite(logits).all()


def test_int8_of_a_keras_model_is_close_to_float(data: DataOptions, tmp_path: Path) -> None:
    source, output = tmp_path / "keras.onnx", tmp_path / "out.onnx"
    keras_vit(source)
    manager.run(source, output, parse("qdq-int8"), RunOptions(data))
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    a, b = (next(iter(Session(p, optimize=False).run({"x": pixels}).values())).ravel() for p in (source, output))
    assert float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) > 0.995


def test_uint8_pixels_are_fed_as_they_are(data: DataOptions, tmp_path: Path) -> None:
    source = tmp_path / "keras.onnx"
    keras_vit(source)
    outcome = manager.run(source, tmp_path / "out.onnx", parse("qdq-int8"), RunOptions(data))
    assert outcome.data is not None
    used = outcome.data["preprocess"]
    assert (used["dtype"], used["layout"], used["mean"], used["std"]) == ("uint8", "NHWC", None, None)
