"""Floats before Q/DQ, sub-byte tensors and small floats are packed as the codes that they are, and come back."""

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.model import from_proto
from gpusq_onnx.graph.pack.archive import pack_model, unpack_model
from gpusq_onnx.graph.pack.container import FORMAT, KEY, ContainerReader, problems
from gpusq_onnx.graph.qdq.codes import weight_scales_of
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.quant.formats import FORMATS, Format, dequantize, quantize
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.sparsity.patterns import parse_pattern
from tools.fuzz.seeds import SEEDS
from tools.zoo.checker import weights_of

K, N = 64, 128
INT8, INT4, FP8, FP4 = (FORMATS[name] for name in ("int8", "int4-in-int8", "fp8", "fp4"))


def on_grid(fmt: Format, pattern: str, dtype: str, block: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight [K, N] that is a code times a scale everywhere, and its scales [N], or [K / block, N]."""
    random = np.random.default_rng(3)
    w = random.standard_normal((N, K)).astype(np.float32)
    w = np.where(parse_pattern(pattern).mask(np.abs(w)), w, np.float32(0)) if pattern else w
    cut = w.reshape(N, -1, block) if block else w[:, None]
    scale = (np.abs(cut).max(axis=2) / fmt.largest + 1e-6).astype(dtype)
    scales = Scales(np.float32(scale), 1, block) if block else Scales(np.float32(scale[:, 0]), 0)
    stored = dequantize(quantize(w, scales, fmt), scales).astype(dtype)
    return np.ascontiguousarray(stored.T), np.ascontiguousarray(scale.T) if block else scale[:, 0]


def model_of(
    path: Path, fmt: Format, w: np.ndarray, scale: np.ndarray, *, block: int = 0, layout: str = "", data: bool = False
) -> Path:
    """x @ DQ(Q(w)), with what lies between w and Q."""
    stored, nodes, source = w, [], "w"
    if layout == "transposed":
        stored, source = np.ascontiguousarray(w.T), "t"
        nodes.append(helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]))
    elif layout == "squeezed":
        stored, source = w[None], "t"
        nodes.append(helper.make_node("Squeeze", ["w", "axes"], ["t"]))
    kind = TensorProto.DataType.Value(fmt.element.upper())
    zero = numpy_helper.from_array(np.zeros(scale.shape, helper.tensor_dtype_to_np_dtype(kind)), "zero")
    attrs = {"axis": 0, "block_size": block} if block else {"axis": 1}
    nodes += [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], ["q"], **attrs),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], **attrs),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(w.dtype)
    initializers = [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(scale, "scale"), zero]
    initializers += [numpy_helper.from_array(np.array([0]), "axes")] if layout == "squeezed" else []
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", kind, [1, K])], [helper.make_tensor_value_info("y", kind, [1, N])],
        initializers,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(made, path, save_as_external_data=data, location=f"{path.name}.data", size_threshold=0)
    return path


def round_trip(path: Path) -> list:
    """The packed weights, once the same bytes have come back."""
    packed, folder = path.with_suffix(".gpusq"), path.parent / "back"
    contents = pack_model(path, packed)
    folder.mkdir()
    unpack_model(packed, folder / path.name)
    for file in contents.files:
        assert (folder / file.name).read_bytes() == (path.parent / file.name).read_bytes()
    return list(contents.weights)


@pytest.mark.parametrize("layout", ["", "transposed", "squeezed"])
@pytest.mark.parametrize(
    ("fmt", "pattern", "dtype", "block", "bits"),
    [
        (INT8, "2:4", "float32", 0, 5),
        (INT8, "2:4", "float16", 0, 5),
        (INT8, "", "float32", 0, 8),
        (INT8, "1:4", "float32", 0, 2.5),
        (INT4, "4:8pair", "float32", 0, 2.5),
        (INT4, "2:4", "float32", 0, 3),
        (INT4, "", "float32", 32, 4),
        (FP8, "2:4", "float32", 0, 5),
        (FP4, "4:8pair", "float32", 16, 2.5),
    ],
    ids=lambda value: value.name if isinstance(value, Format) else str(value),
)
def test_floats_are_stored_as_their_codes(
    tmp_path: Path, fmt: Format, pattern: str, dtype: str, block: int, bits: float, layout: str
) -> None:
    w, scale = on_grid(fmt, pattern, dtype, block)
    path = model_of(tmp_path / "m.onnx", fmt, w, scale, block=block, layout=layout, data=layout == "transposed")
    (weight,) = round_trip(path)
    assert (weight.bits, weight.scaling.scale) == (bits, "scale")
    (seen,) = weights_of(path)  # by other means
    assert seen.on_grid and seen.element == fmt.element
    assert not pattern or pattern in seen.rules
    assert seen.four_bits == (fmt is INT4)


def test_a_float_that_is_no_code_times_scale_stays_one(tmp_path: Path) -> None:
    w, scale = on_grid(INT8, "2:4", "float32")
    w[np.nonzero(w)[0][0], np.nonzero(w)[1][0]] *= np.float32(1.001)
    (weight,) = round_trip(model_of(tmp_path / "m.onnx", INT8, w, scale))
    assert (weight.bits, weight.scaling) == (17, None)


def test_a_negative_zero_stays_one(tmp_path: Path) -> None:
    w, scale = on_grid(INT8, "", "float32")
    w[0, 0] = -0.0
    w[:, ::2] = w[0, 0]
    w[1::2] = 0
    round_trip(model_of(tmp_path / "m.onnx", INT8, w, scale))


@pytest.mark.parametrize(("kind", "size"), [("INT4", (8, 33)), ("UINT4", (16, 32)), ("FLOAT4E2M1", (5, 7))])
@pytest.mark.parametrize("sparse", [False, True])
def test_two_elements_a_byte(tmp_path: Path, kind: str, size: tuple[int, int], sparse: bool) -> None:
    count = size[0] * size[1] if not sparse else 16 * 32
    raw = np.random.default_rng(0).integers(0, 256, (count + 1) // 2).astype(np.uint8)
    raw &= 0x0F if sparse else 0xFF  # every second element is 0
    if count % 2:
        raw[-1] &= 0x0F
    tensor = TensorProto(name="w", data_type=getattr(TensorProto, kind), dims=(16, 32) if sparse else size)
    tensor.raw_data = raw.tobytes()
    eight = numpy_helper.from_array(np.arange(1, 65, dtype=np.int8).reshape(8, 8) % 7, "eight")
    outputs = [
        helper.make_tensor_value_info(name, t.data_type, list(t.dims)) for name, t in (("y", tensor), ("z", eight))
    ]
    nodes = [helper.make_node("Identity", [name], [out]) for name, out in (("w", "y"), ("eight", "z"))]
    graph = helper.make_graph(nodes, "g", [], outputs, [tensor, eight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), tmp_path / "m.onnx")
    weights = {weight.name: weight for weight in round_trip(tmp_path / "m.onnx")}
    assert ("w" in weights) == sparse
    assert not sparse or weights["w"].bits == 3


def old_container(path: Path) -> None:
    """What version 1 wrote of the same weights: the rest as it is, and no scales."""
    reader = ContainerReader(path)
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["rest:0"] = np.frombuffer(b"".join(reader.rest(0)), np.uint8)
    contents = reader.contents.to_dict() | {"format": 1}
    contents["weights"] = [{k: v for k, v in w.items() if k not in ("nibbles", "scaling")} for w in contents["weights"]]
    del contents["scales"]
    save_file(tensors, path, {KEY: json.dumps(contents)})


def test_the_first_format_is_still_read(tmp_path: Path) -> None:
    w, scale = on_grid(INT8, "2:4", "float32")
    path = model_of(tmp_path / "m.onnx", INT8, w + np.float32(1e-6) * (w != 0), scale)  # no codes
    pack_model(path, tmp_path / "m.gpusq")
    old_container(tmp_path / "m.gpusq")
    unpack_model(tmp_path / "m.gpusq", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_external_data_without_a_matrix_comes_back_too(tmp_path: Path) -> None:
    w, scale = on_grid(INT8, "2:4", "float32")
    path = model_of(tmp_path / "m.onnx", INT8, w, scale)
    proto = onnx.load(path)
    (bias,) = [t for t in proto.graph.initializer if t.name == "scale"]
    (tmp_path / "small.bin").write_bytes(bias.raw_data)
    bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    bias.external_data.add(key="location", value="small.bin")
    onnx.save(proto, path)
    (weight,) = round_trip(path)
    assert weight.bits == 5


def test_what_is_declared_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    w, scale = on_grid(INT8, "2:4", "float32")
    pack_model(model_of(tmp_path / "m.onnx", INT8, w, scale), tmp_path / "m.gpusq")
    contents = ContainerReader(tmp_path / "m.gpusq").contents
    with safe_open(tmp_path / "m.gpusq", framework="np") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    assert list(problems(contents, sizes)) == []
    (weight,), (scales,), (file,) = contents.weights, contents.scales, contents.files
    assert weight.scaling is not None
    again = replace(weight, start=file.bytes)
    huge = replace(file, bytes=file.bytes + 1032 * sizes["rest:0"])
    wrong = [
        replace(contents, weights=(weight, again), files=(replace(file, bytes=file.bytes + weight.bytes),)),
        replace(contents, weights=(replace(weight, dims=(K, 2 * N)),)),
        replace(contents, weights=(replace(weight, width=4),)),
        replace(contents, weights=(replace(weight, scaling=replace(weight.scaling, order=(0, 0))),)),
        replace(contents, weights=(replace(weight, scaling=replace(weight.scaling, element="float64")),)),
        replace(contents, weights=(replace(weight, scaling=replace(weight.scaling, scale="none")),)),
        replace(contents, scales=(replace(scales, dims=(2 * N,)),)),
        replace(contents, scales=(replace(scales, start=weight.start),)),
        replace(contents, files=(huge,)),
    ]
    for number, one in enumerate(wrong):
        assert list(problems(one, sizes)), number
    assert contents.format == FORMAT


def test_more_than_was_declared_is_never_written(tmp_path: Path) -> None:
    w, scale = on_grid(INT8, "2:4", "float32")
    pack_model(model_of(tmp_path / "m.onnx", INT8, w, scale), tmp_path / "m.gpusq")
    with safe_open(tmp_path / "m.gpusq", framework="np") as file:
        contents = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["rest:0"] = np.concatenate([tensors["rest:0"]] * 3)
    save_file(tensors, tmp_path / "m.gpusq", {KEY: json.dumps(contents)})
    with pytest.raises(UnsupportedModelError, match="larger than it was"):
        unpack_model(tmp_path / "m.gpusq", tmp_path / "back.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gpusq", "m.onnx"]


def test_scales_that_are_dequantised_themselves(tmp_path: Path) -> None:
    """NVFP4: FP8 scales of blocks under one FP32 scale."""
    w, scale = on_grid(FP4, "4:8pair", "float32", 16)
    small = (scale / np.float32(0.01)).astype(ml_dtypes.float8_e4m3fn)
    scales = Scales(small.astype(np.float32), 0, 16, 0.01)
    w = dequantize(quantize(w, scales, FP4), scales)
    path = model_of(tmp_path / "m.onnx", FP4, w, scale, block=16)
    proto = onnx.load(path)
    (old,) = [t for t in proto.graph.initializer if t.name == "scale"]
    old.CopyFrom(numpy_helper.from_array(small, "small"))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "outer"))
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["small", "outer"], ["scale"]))
    onnx.save(proto, path)
    (weight,) = round_trip(path)
    assert (weight.bits, weight.scaling.scale, weight.scaling.outer) == (2.5, "small", "outer")
    (seen,) = weights_of(path)
    assert seen.on_grid and "4:8pair" in seen.rules


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0])
def test_scales_that_are_no_positive_numbers_are_refused(value: float) -> None:
    made = SEEDS["quantised"]()
    (scales,) = (stored for stored in made.graph.initializer if stored.name == "scales")
    values = np.abs(numpy_helper.to_array(scales))
    values[3] = value
    scales.CopyFrom(numpy_helper.from_array(values, "scales"))
    with pytest.raises(UnsupportedModelError, match="no positive number"):
        weight_scales_of(*analyse(from_proto(made, None)).sites)
