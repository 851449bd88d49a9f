"""Profiles, options and the command lines that are equal to a build."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph.model import TensorSpec
from gpusq_onnx.runtime.tensorrt.commands import polygraphy, trtexec
from gpusq_onnx.runtime.tensorrt.options import BuildOptions, parse_memory
from gpusq_onnx.runtime.tensorrt.profiles import (
    Bounds,
    make_profiles,
    opens_batch,
    parse_batch,
    parse_shapes,
    tuned_batch,
)

FLOAT = np.dtype(np.float32)
IMAGE = TensorSpec("image", FLOAT, ("N", 3, 32, 32))
SIZES = TensorSpec("sizes", np.dtype(np.int64), (None, 2))
WIDE = TensorSpec("image", FLOAT, ("N", 3, "H", "W"))
FIXED = TensorSpec("image", FLOAT, (8, 3, 32, 32))


@pytest.mark.parametrize(
    ("text", "sizes"), [("32", (32, 32, 32)), ("1,32", (1, 32, 32)), ("1,32,256", (1, 32, 256)), (" 1, 2 ", (1, 2, 2))]
)
def test_a_batch_is_one_to_three_sizes(text: str, sizes: tuple[int, int, int]) -> None:
    assert parse_batch(text) == Bounds(*((size,) for size in sizes))


@pytest.mark.parametrize("text", ["", "0", "-1", "1,2,3,4", "a", "1,,2", "1x2", "32,1", "1,64,32"])
def test_a_batch_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--batch"):
        parse_batch(text)


def test_shapes_are_one_to_three_for_an_input() -> None:
    assert parse_shapes("a:b:1x3,8x3,16x3") == ("a:b", Bounds((1, 3), (8, 3), (16, 3)))


@pytest.mark.parametrize(
    "text", ["1x3", ":1x3", "x:", "x:1x3,1x3x3", "x:1x0", "x:8x3,1x3", "x:1x3,1x3,1x3,1x3", "x:1*3"]
)
def test_shapes_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shapes"):
        parse_shapes(text)


def test_a_batch_goes_to_every_input_that_leaves_it_open() -> None:
    (profile,) = make_profiles([IMAGE, SIZES], [parse_batch("1,4,8")])
    assert profile == {
        "image": Bounds((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 32, 32)),
        "sizes": Bounds((1, 2), (4, 2), (8, 2)),
    }
    assert tuned_batch(profile) == 4
    assert opens_batch([IMAGE])


def test_each_batch_is_a_profile_and_none_is_batch_1() -> None:
    assert [tuned_batch(p) for p in make_profiles([IMAGE], [parse_batch("1"), parse_batch("256")])] == [1, 256]
    assert [tuned_batch(p) for p in make_profiles([IMAGE])] == [1]


def test_shapes_set_what_a_batch_does_not() -> None:
    (profile,) = make_profiles([WIDE, SIZES], [parse_batch("4")], dict([parse_shapes("image:4x3x64x48")]))
    assert profile["image"].opt == (4, 3, 64, 48)
    assert profile["sizes"].opt == (4, 2)


def test_a_fixed_model_keeps_its_batch() -> None:
    assert make_profiles([FIXED]) == make_profiles([FIXED], [parse_batch("8")])
    assert tuned_batch(make_profiles([FIXED])[0]) == 8
    assert not opens_batch([FIXED])
    with pytest.raises(UsageError, match="batch size is fixed"):
        make_profiles([FIXED], [parse_batch("1,8")])


@pytest.mark.parametrize(
    ("inputs", "batches", "shapes", "words"),
    [
        ([WIDE], ["1"], [], "dynamic axes besides the batch"),
        ([IMAGE], [], ["img:1x3x32x32"], "no input is named img"),
        ([IMAGE], [], ["image:1x3x32"], r"does not fit input image(.|\n)*\[N, 3, 32, 32\]"),
        ([IMAGE], [], ["image:1x4x32x32"], "does not fit input image"),
        ([IMAGE], ["1", "2"], ["image:1x3x32x32"], "one profile"),
        ([IMAGE], ["1"], ["image:1x3x32x32"], "leaves nothing to --batch"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    inputs: list[TensorSpec], batches: list[str], shapes: list[str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make_profiles(inputs, list(map(parse_batch, batches)), dict(map(parse_shapes, shapes)))


def test_memory_limits_are_bytes_by_pool() -> None:
    assert parse_memory("workspace:4G,tactic_shared_memory:64K") == {
        "workspace": 4 * 2**30,
        "tactic_shared_memory": 64 * 2**10,
    }


@pytest.mark.parametrize(
    "text", ["", "workspace", "workspace:0", "workspace:4T", "dla:1G", "workspace:1G,workspace:2G"]
)
def test_memory_limits_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_memory(text)


def test_rtx_has_no_hardware_levels() -> None:
    with pytest.raises(UsageError, match="no hardware compatibility"):
        BuildOptions(make_profiles([IMAGE]), rtx=True, hardware="ampere_plus")


ALL = BuildOptions(
    make_profiles([IMAGE], [parse_batch("1,4,8"), parse_batch("16")]),
    tf32=False,
    optimization_level=5,
    memory={"workspace": 2**30},
    hardware="ampere_plus",
    version_compatible=True,
)
PLAIN = BuildOptions(make_profiles([IMAGE, FIXED], [parse_batch("4")]))


def test_the_trtexec_line() -> None:
    line = trtexec(Path("my model.onnx"), Path("m.plan"), ALL, dynamic=["image"], major=10)
    assert shlex.split(line) == [
        "trtexec", "--onnx=my model.onnx", "--saveEngine=m.plan", "--stronglyTyped", "--sparsity=enable",
        "--profile=0", "--minShapes=image:1x3x32x32", "--optShapes=image:4x3x32x32", "--maxShapes=image:8x3x32x32",
        "--profile=1", "--minShapes=image:16x3x32x32", "--optShapes=image:16x3x32x32", "--maxShapes=image:16x3x32x32",
        "--builderOptimizationLevel=5", "--profilingVerbosity=detailed", "--memPoolSize=workspace:1024",
        "--hardwareCompatibilityLevel=ampere+", "--versionCompatible", "--noTF32", "--skipInference",
    ]  # fmt: skip


def test_the_trtexec_line_of_tensorrt_11_and_of_a_fixed_model() -> None:
    line = trtexec(Path("m.onnx"), Path("m.plan"), PLAIN, dynamic=[], major=11)
    assert "--stronglyTyped" not in line  # nothing else is left in 11
    assert "Shapes" not in line  # trtexec refuses shapes for fixed inputs
    assert "--noTF32" not in line


def test_the_polygraphy_line() -> None:
    assert shlex.split(polygraphy(Path("my model.onnx"), Path("m.plan"), ALL)) == [
        "polygraphy", "convert", "my model.onnx", "--convert-to", "trt", "-o", "m.plan", "--strongly-typed",
        "--sparse-weights",
        "--trt-min-shapes", "image:[1,3,32,32]", "--trt-opt-shapes", "image:[4,3,32,32]",
        "--trt-max-shapes", "image:[8,3,32,32]",
        "--trt-min-shapes", "image:[16,3,32,32]", "--trt-opt-shapes", "image:[16,3,32,32]",
        "--trt-max-shapes", "image:[16,3,32,32]",
        "--builder-optimization-level", "5", "--profiling-verbosity", "detailed",
        "--pool-limit", "workspace:1073741824", "--hardware-compatibility-level", "ampere_plus", "--version-compatible",
    ]  # fmt: skip


def test_the_lines_for_tensorrt_rtx() -> None:
    rtx = BuildOptions(make_profiles([IMAGE]), rtx=True)
    assert trtexec(Path("m"), Path("p"), rtx, dynamic=["image"], major=1).startswith("tensorrt_rtx --onnx=m")
    assert polygraphy(Path("m"), Path("p"), rtx).startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy convert m ")


def test_shapes_may_be_given_with_an_equals_sign() -> None:
    assert parse_shapes("input:0=1x8,2x8") == ("input:0", Bounds((1, 8), (2, 8), (2, 8)))
