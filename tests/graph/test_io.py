"""Files in and out: external data, refusals, all or nothing, the same bytes."""

import errno
import os
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import FLOAT, node, normal, proto, run

from gpusq_onnx.errors import InvariantError, UnsupportedModelError, UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.sites import find_sites

ASSETS = Path(__file__).parents[1] / "assets"
FEED = {"x": normal(5, 64)}


def two_layers():
    """Two large weights, a small bias (inline), a Constant node."""
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        node("Add", ["h", "b"], ["a"]),
        node("Constant", [], ["two"], value_float=2.0),
        node("Mul", ["a", "two"], ["m"]),
        node("MatMul", ["m", "w2"], ["y"]),
    ]
    constants = {"w1": normal(64, 32), "b": normal(32), "w2": normal(32, 64, seed=2)}
    return proto(nodes, [("x", FLOAT, ["batch", 64])], [("y", FLOAT, ["batch", 64])], constants)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The model with all its tensors in one data file, as torch's exporter and others write it."""
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save_model(two_layers(), str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def entries(path: Path) -> dict[str, dict[str, str]]:
    tensors = onnx.load_model(str(path), load_external_data=False).graph.initializer
    return {t.name: {e.key: e.value for e in t.external_data} for t in tensors}


def test_reading_that_changes_the_inputs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    onnx.save(two_layers(), tmp_path / "m.onnx")

    def store_the_input(made: onnx.ModelProto):
        made.graph.initializer.append(numpy_helper.from_array(FEED["x"], "x"))

    monkeypatch.setattr(io, "raise_opset", store_the_input)
    with pytest.raises(InvariantError, match="changed its inputs"):
        io.load(tmp_path / "m.onnx")


def test_external_data_in_and_out(external: Path, tmp_path: Path):
    model = io.load(external)
    assert model.external
    out = tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    io.save(model, out)
    assert names(out.parent) == ["small.onnx", "small.onnx.data"]
    written = entries(out)
    assert {name: e.get("location") for name, e in written.items() if e} == {
        "w1": "small.onnx.data",
        "w2": "small.onnx.data",
    }
    assert all(int(e["offset"]) % 4096 == 0 for e in written.values() if e)
    np.testing.assert_array_equal(run(out, FEED)["y"], run(external, FEED)["y"])
    onnx.checker.check_model(str(out), full_check=True)
    for file in external.parent.iterdir():
        file.unlink()
    assert run(out, FEED)["y"].shape == (5, 64), "the output must not lean on the input's files"


def test_external_weights_stay_on_disk_until_they_are_read(external: Path):
    (first, _) = find_sites(io.load(external))
    assert isinstance(first.read().base, np.memmap) or not first.weight._values.tensor.HasField("raw_data")


def test_a_weight_that_was_changed_goes_out_changed(external: Path, tmp_path: Path):
    model = io.load(external)
    first, second = find_sites(model)
    first.write(np.zeros_like(first.read()))
    io.save(model, tmp_path / "m.onnx")
    loaded = onnx.load_model(str(tmp_path / "m.onnx"))
    values = {t.name: numpy_helper.to_array(t) for t in loaded.graph.initializer}
    assert not values["w1"].any()
    np.testing.assert_array_equal(values["w2"], second.read().T)


def test_one_file_stays_one_file(tmp_path: Path):
    source = tmp_path / "m.onnx"
    onnx.save_model(two_layers(), str(source))
    io.save(io.load(source), tmp_path / "n.onnx")
    assert names(tmp_path) == ["m.onnx", "n.onnx"]
    np.testing.assert_array_equal(run(tmp_path / "n.onnx", FEED)["y"], run(source, FEED)["y"])


def retarget(path: Path, **changes: str) -> None:
    """Change the first tensor's external entry."""
    model = onnx.load_model(str(path), load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = {e.key: e.value for e in tensor.external_data} | changes
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "", "sub/../../secret.bin"])
def test_data_outside_the_folder_is_refused(external: Path, location: str):
    (external.parent.parent / "secret.bin").write_bytes(bytes(1 << 16))
    retarget(external, location=location)
    with pytest.raises(UnsupportedModelError, match="outside the model's folder") as caught:
        io.load(external)
    assert caught.value.exit_code == 3


def test_a_link_out_of_the_folder_is_refused(external: Path):
    outside = external.parent.parent / "elsewhere.bin"
    data = external.parent / "model.onnx.data"
    data.rename(outside)
    data.symlink_to(outside)
    with pytest.raises(UnsupportedModelError, match="outside the model's folder"):
        io.load(external)


def test_missing_data_is_refused(external: Path):
    (external.parent / "model.onnx.data").unlink()
    with pytest.raises(UnsupportedModelError, match="is missing") as caught:
        io.load(external)
    assert "model.onnx.data" in str(caught.value)
    assert caught.value.exit_code == 3


def test_truncated_data_is_refused(external: Path):
    data = external.parent / "model.onnx.data"
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(UnsupportedModelError, match="truncated"):
        io.load(external)


@pytest.mark.parametrize(
    "changes", [{"offset": "-4"}, {"offset": "999999999"}, {"length": "8"}, {"length": "9000"}, {"offset": "first"}]
)
def test_a_wrong_place_in_the_data_file_is_refused(external: Path, changes: dict[str, str]):
    retarget(external, **changes)
    with pytest.raises(UnsupportedModelError, match="its place in the file is wrong"):
        io.load(external)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model\n" * 100, b"\x00" * 64, b"{}", b"ir_version: 8\nopset_import { version: 17 }\n"],
    ids=["empty", "text", "zeros", "json", "textproto"],
)
@pytest.mark.parametrize("name", ["m.onnx", "m.json", "m.textproto"])
def test_files_that_are_no_models_are_refused(tmp_path: Path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match="not an ONNX model") as caught:
        io.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_models_are_refused(tmp_path: Path, share: float):
    whole = (ASSETS / "digits_vit.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnsupportedModelError):
        io.load(path)


def test_a_weight_shorter_than_its_shape_is_refused(tmp_path: Path):
    made = two_layers()
    made.graph.initializer[0].raw_data = made.graph.initializer[0].raw_data[:-4]
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UnsupportedModelError, match="'w1' does not hold what its shape"):
        io.load(tmp_path / "m.onnx")


def test_a_tensor_that_nothing_produces_is_refused(tmp_path: Path):
    made = two_layers()
    made.graph.node[0].input[1] = "lost"
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UnsupportedModelError, match="nothing produces"):
        io.load(tmp_path / "m.onnx")


def test_what_the_caller_mistyped(tmp_path: Path):
    with pytest.raises(UsageError, match="no such model"):
        io.load(tmp_path / "absent.onnx")
    with pytest.raises(UsageError, match="folder"):
        io.load(tmp_path)


class _Full:
    """A file on a disk that is full after `room` bytes."""

    def __init__(self, file, room: int, error: BaseException) -> None:
        self._file, self._room, self._error = file, room, error

    def write(self, data) -> int:
        self._room -= len(memoryview(data).cast("B"))
        if self._room < 0:
            raise self._error
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *about):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 100, 9000])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_an_interrupt_leave_the_folder_as_it_was(external, tmp_path, monkeypatch, room, error):
    model = io.load(external)
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.onnx").write_bytes(b"the old model")
    (out / "m.onnx.data").write_bytes(b"the old data")
    opened = Path.open

    def full(path, mode="r", *rest, **more):
        file = opened(path, mode, *rest, **more)
        return _Full(file, room, error) if mode in ("wb", "xb") else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(type(error)):
        io.save(model, out / "m.onnx")
    monkeypatch.undo()
    assert names(out) == ["m.onnx", "m.onnx.data"]
    assert (out / "m.onnx").read_bytes() == b"the old model"
    assert (out / "m.onnx.data").read_bytes() == b"the old data"


@pytest.mark.parametrize("step", [0, 1])
def test_a_rename_that_fails_leaves_nothing_new(external, tmp_path, monkeypatch, step):
    model = io.load(external)
    out = tmp_path / "out"
    out.mkdir()
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) > step:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        io.save(model, out / "m.onnx")
    assert names(out) == []


@pytest.mark.parametrize("asset", ["digits_vit.onnx", "digits_vit_legacy17.onnx"])
def test_same_model_same_bytes_and_a_fixpoint(asset: str, tmp_path: Path):
    model = io.load(ASSETS / asset)
    first = io.save(model, tmp_path / "1.onnx")
    assert io.save(io.load(ASSETS / asset), tmp_path / "2.onnx") == first
    assert io.save(io.load(tmp_path / "1.onnx"), tmp_path / "3.onnx") == first
    assert (tmp_path / "3.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes() == io.to_bytes(model)
    onnx.checker.check_model(str(tmp_path / "1.onnx"), full_check=True)


def test_external_data_is_a_fixpoint_too(external: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    io.save(io.load(external), one / "m.onnx")
    io.save(io.load(one / "m.onnx"), two / "m.onnx")
    for name in ("m.onnx", "m.onnx.data"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_the_digest_is_the_files(external: Path, tmp_path: Path):
    out = tmp_path / "m.onnx"
    digest = io.save(io.load(external), out)
    assert digest == io.file_digest(out, io.data_files(io.load(out)))
    (tmp_path / "m.onnx.data").write_bytes(b"\1" + (tmp_path / "m.onnx.data").read_bytes()[1:])
    assert digest != io.file_digest(out, io.data_files(io.load(out)))


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path):
    """One file that grew past protobuf's limit goes out with its data beside it, and comes back."""
    count, rows, columns = 5, 8192, 14336  # 5 x 448 MiB
    nodes = [node("Gather", [f"w{i}", "x"], [f"h{i}"]) for i in range(count)]
    nodes.append(node("Sum", [f"h{i}" for i in range(count)], ["y"]))
    made = proto(nodes, [("x", onnx.TensorProto.INT64, [1])], [("y", FLOAT, [1, columns])])
    data = tmp_path / "big.onnx.data"
    size = rows * columns * 4
    with data.open("wb") as file:
        file.truncate(count * size)
        for i in range(count):
            file.seek(i * size)
            file.write(struct.pack("<f", i + 1.0))
    for i in range(count):
        tensor = made.graph.initializer.add(name=f"w{i}", data_type=FLOAT, dims=[rows, columns])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", data.name), ("offset", i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    source = tmp_path / "big.onnx"
    source.write_bytes(made.SerializeToString())
    model = io.load(source)
    model.external = False  # as if it had come as one file
    out = tmp_path / "out"
    out.mkdir()
    io.save(model, out / "m.onnx")
    assert names(out) == ["m.onnx", "m.onnx.data"]
    assert (out / "m.onnx").stat().st_size < 10_000
    again = io.load(out / "m.onnx")
    assert [float(c._values.external_bytes()[:4].view(np.float32)[0]) for c in again.constants()] == [1, 2, 3, 4, 5]
