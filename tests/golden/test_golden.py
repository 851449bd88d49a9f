"""Golden files: what every pass makes of the embedded models, byte for byte or node for node.

    bytes     SHA-256 of the written file, for passes that only select, move and round: the same on any machine
    graphs    nodes, attributes, types and shapes of what calibrated passes write; their numbers depend on the CPU

`python tests/golden/test_golden.py` writes them anew; look at the difference before you commit it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.pipeline import grammar, manager
from gpusq_onnx.pipeline.run import RunOptions

HERE = Path(__file__).parent
ASSETS = HERE.parent / "assets"
MODELS = ("digits_vit", "digits_vit_legacy17")
DIGESTS = HERE / "digests.json"
EXACT = (
    "prune24{method=magnitude}",
    "prune48pair{method=magnitude}",
    "prune-nm{method=magnitude,pattern=1:4}",
    "fold",
    "canonical",
    "fp16",
)
CALIBRATED = {
    "qdq-int8": "qdq-int8",
    "sparse-int8": "prune24{method=magnitude},qdq-int8{profile=sparse-int8}",
    "codes": "qdq-int8{weights=int8}",
    "w4a4": "qdq{scheme=w4a4}",
    "tensorrt-int8": "prune24{method=magnitude},qdq-int8,fp16",
}


def written(name: str, passes: str, folder: Path) -> Path:
    """The file that a pipeline writes."""
    target = folder / "made.onnx"
    calibrated = any(step.name.startswith("qdq") for step in grammar.parse(passes).steps)
    data = DataOptions(path=ASSETS / "digits_train.npz", samples=8) if calibrated else DataOptions()
    manager.run(ASSETS / f"{name}.onnx", target, grammar.parse(passes), RunOptions(data, allow_noop=True))
    return target


def digest(name: str, passes: str, folder: Path) -> str:
    """The SHA-256 of a written file without its metadata, which tells the version of this package."""
    model = onnx.load(written(name, passes, folder))
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def graph(path: Path) -> str:
    """A graph as text, one line a node and one a constant, without the numbers that calibration finds."""
    model = onnx.load(path)
    lines = [f"opset {entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import]
    for node in model.graph.node:
        attributes = "".join(f" {a.name}={_value(a)}" for a in sorted(node.attribute, key=lambda a: a.name))
        lines.append(f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)}){attributes}")
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        lines.append(f"{tensor.name}: {kind}{list(tensor.dims)}")
    return "\n".join(lines) + "\n"


def _value(attribute: onnx.AttributeProto) -> object:
    if attribute.HasField("t"):
        return numpy_helper.to_array(attribute.t).tolist()
    found = onnx.helper.get_attribute_value(attribute)
    return found.decode() if isinstance(found, bytes) else found


@pytest.mark.parametrize("passes", EXACT)
@pytest.mark.parametrize("name", MODELS)
def test_the_bytes(name: str, passes: str, tmp_path: Path) -> None:
    assert digest(name, passes, tmp_path) == json.loads(DIGESTS.read_text())[f"{name} {passes}"]


@pytest.mark.parametrize("case", CALIBRATED)
def test_the_graph(case: str, tmp_path: Path) -> None:
    assert graph(written(MODELS[1], CALIBRATED[case], tmp_path)) == (HERE / f"{case}.txt").read_text()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = {f"{name} {passes}": digest(name, passes, Path(scratch)) for name in MODELS for passes in EXACT}
        DIGESTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        for case, passes in CALIBRATED.items():
            (HERE / f"{case}.txt").write_text(graph(written(MODELS[1], passes, Path(scratch))))
