"""Packed models come back byte for byte, are as small as docs/method.md says, and damage is reported."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file

from gpusq_onnx.errors import NothingMatched, UnsupportedModelError, UsageError
from gpusq_onnx.graph.pack.archive import pack_model, read_contents, unpack_model
from gpusq_onnx.graph.pack.container import KEY


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """One weight for each way of packing, by a name that says what is expected."""
    random = np.random.default_rng(seed)

    def pruned(shape: tuple[int, ...], axis: int, *, pairs: bool = False, low: int = 100) -> np.ndarray:
        w = np.moveaxis(random.integers(1, low, shape), axis, -1).copy()
        step = 8 if pairs else 4
        for place in (0, 1, 4, 5) if pairs else (1, 2):
            w[..., place::step] = 0
        return np.moveaxis(w, -1, axis)

    return {
        "2:4 16": pruned((64, 32), 0).astype(np.float16),
        "2:4 8": pruned((32, 64), 1).astype(np.int8),
        "4:8pair 4": pruned((64, 32), 0, pairs=True, low=8).astype(np.int8),
        "2:4 32": pruned((32, 16, 3, 3), 1).astype(np.float32),
        "dense 4": random.integers(-8, 8, (1, 32, 64)).astype(np.int8),
        "none": random.integers(8, 99, (32, 64)).astype(np.float32),
    }


def saved(path: Path, values: dict[str, np.ndarray], *, external: bool = False) -> Path:
    """A model whose initializers these are, each read by an Identity."""
    nodes = [helper.make_node("Identity", [name], [f"{name} out"]) for name in values]
    outputs = [
        helper.make_tensor_value_info(f"{name} out", helper.np_dtype_to_tensor_dtype(w.dtype), w.shape)
        for name, w in values.items()
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], outputs,
        [numpy_helper.from_array(w, name) for name, w in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.mark.parametrize("external", [False, True])
def test_the_same_bytes_come_back(tmp_path: Path, external: bool) -> None:
    path = saved(tmp_path / "m.onnx", weights(), external=external)
    contents = pack_model(path, tmp_path / "m.gpusq")
    assert {weight.name: f"{weight.pattern} {weight.width}" for weight in contents.weights} == {
        name: name for name in weights() if name != "none"
    }
    assert read_contents(tmp_path / "m.gpusq") == contents
    (tmp_path / "back").mkdir()
    unpack_model(tmp_path / "m.gpusq", tmp_path / "back" / "m.onnx")
    names = ["m.onnx", "m.onnx.data"] if external else ["m.onnx"]
    assert sorted(entry.name for entry in (tmp_path / "back").iterdir()) == names
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_size_is_that_of_the_bits(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    w = random.integers(1, 100, (512, 512)).astype(np.int8)
    w[1::4] = w[2::4] = 0
    path = saved(tmp_path / "m.onnx", {"w": w})
    (weight,) = pack_model(path, tmp_path / "m.gpusq").weights
    assert (weight.axis, weight.bits) == (0, 5)
    rest = path.stat().st_size - w.nbytes
    assert w.size * 5 / 8 <= (tmp_path / "m.gpusq").stat().st_size <= w.size * 5 / 8 + rest + 1000


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", weights())
    for name in ("a", "b"):
        pack_model(path, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bytes_that_two_names_share_are_packed_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", {"a": weights()["2:4 8"], "b": weights()["2:4 8"]}, external=True)
    proto = onnx.load(path, load_external_data=False)
    first, second = proto.graph.initializer
    del second.external_data[:]
    second.external_data.extend(first.external_data)
    onnx.save(proto, path)
    contents = pack_model(path, tmp_path / "m.gpusq")
    assert [weight.name for weight in contents.weights] == ["a"]
    (tmp_path / "back").mkdir()
    unpack_model(tmp_path / "m.gpusq", tmp_path / "back" / "m.onnx")
    assert (tmp_path / "back" / "m.onnx.data").read_bytes() == (tmp_path / "m.onnx.data").read_bytes()


def test_nothing_to_pack_and_nothing_to_read(tmp_path: Path) -> None:
    dense = saved(tmp_path / "dense.onnx", {"none": weights()["none"]})
    with pytest.raises(NothingMatched, match="prune24"):
        pack_model(dense, tmp_path / "m.gpusq")
    (tmp_path / "text").write_text("no model")
    with pytest.raises(UnsupportedModelError, match="not an ONNX model"):
        pack_model(tmp_path / "text", tmp_path / "m.gpusq")
    with pytest.raises(UsageError):
        pack_model(tmp_path / "none.onnx", tmp_path / "m.gpusq")
    with pytest.raises(UsageError):
        unpack_model(tmp_path / "none.gpusq", tmp_path / "m.onnx")
    assert not (tmp_path / "m.gpusq").exists()


def test_weights_in_float64_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", {"w": weights()["2:4 32"].astype(np.float64)})
    with pytest.raises(NothingMatched, match="1 weights in float64") as caught:
        pack_model(path, tmp_path / "m.gpusq")
    assert caught.value.details["next"] == "export the model in float32"


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_dense_codes_are_no_smaller_and_are_not_to_be_quantised_again(tmp_path: Path, kind: type) -> None:
    codes = np.random.default_rng(0).integers(1, 100, (32, 64)).astype(kind)
    path = saved(tmp_path / "m.onnx", {"w": codes, "float": weights()["none"]})
    with pytest.raises(NothingMatched, match="makes no weight of the model smaller") as caught:
        pack_model(path, tmp_path / "m.gpusq")
    assert caught.value.details["found"] == "1 weights stored as codes already, and dense"
    assert "quantises them" not in str(caught.value.details["next"])


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_a_flipped_bit_is_told_and_nothing_is_written(tmp_path: Path, place: float) -> None:
    pack_model(saved(tmp_path / "m.onnx", weights()), tmp_path / "m.gpusq")
    data = bytearray((tmp_path / "m.gpusq").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")  # after safetensors' header
    data[start + int((len(data) - start) * place)] ^= 1
    (tmp_path / "m.gpusq").write_bytes(data)
    with pytest.raises(UnsupportedModelError, match="damaged"):
        unpack_model(tmp_path / "m.gpusq", tmp_path / "back.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.gpusq", "m.onnx"]


WRONG = {"name": "w", "file": 0, "start": -5, "dims": [3], "axis": 0, "itemsize": 3, "pattern": "2:4", "width": 9}


@pytest.mark.parametrize(
    "edit",
    [
        {"format": 3},
        {"files": []},
        {"files": [{"name": "../m.onnx", "bytes": 1, "sha256": "x"}]},
        {"weights": 3},
        {"weights": [WRONG]},
        {"weights": [{**WRONG, "dims": [8, 8], "pattern": "5:7"}]},
    ],
)
def test_a_description_that_does_not_hold_is_refused(tmp_path: Path, edit: dict) -> None:
    pack_model(saved(tmp_path / "m.onnx", weights()), tmp_path / "m.gpusq")
    with safe_open(tmp_path / "m.gpusq", framework="np") as file:
        reported = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "m.gpusq", {KEY: json.dumps({**reported, **edit})})
    with pytest.raises(UnsupportedModelError):
        unpack_model(tmp_path / "m.gpusq", tmp_path / "back.onnx")
    assert not (tmp_path / "back.onnx").exists()


def test_a_file_without_our_description_or_half_a_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    pack_model(saved(tmp_path / "m.onnx", weights()), tmp_path / "m.gpusq")
    (tmp_path / "half").write_bytes((tmp_path / "m.gpusq").read_bytes()[:5000])
    for name in ("other.safetensors", "half", "m.onnx"):
        with pytest.raises(UnsupportedModelError, match="not a packed model"):
            unpack_model(tmp_path / name, tmp_path / "back.onnx")


def test_external_data_does_not_overwrite_another_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", weights(), external=True)
    pack_model(path, tmp_path / "m.gpusq")
    unpack_model(tmp_path / "m.gpusq", tmp_path / "again.onnx")  # the data file is there already, and the same
    (tmp_path / "m.onnx.data").write_bytes(b"another")
    with pytest.raises(UsageError, match="in the way"):
        unpack_model(tmp_path / "m.gpusq", tmp_path / "again.onnx")
    assert (tmp_path / "m.onnx.data").read_bytes() == b"another"
