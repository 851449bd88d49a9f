"""What TensorRT says of an engine, in the words of 8.6, 10.x and 11.x.

The texts in recorded/ are written after NVIDIA's documentation and published logs, not captured: no GPU was at hand.
"""

import json
from pathlib import Path

import pytest

from gpusq_onnx.runtime.tensorrt.layers import Layer, nodes_of, read_layers, read_printed_layers
from gpusq_onnx.runtime.tensorrt.sparsity import read_sparsity

RECORDED = Path(__file__).parent / "recorded"


def log(name: str) -> list[str]:
    return (RECORDED / name).read_text(encoding="utf-8").splitlines()


def layers(name: str) -> dict[str, Layer]:
    return {layer.name: layer for layer in read_layers((RECORDED / name).read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    ("name", "eligible", "chosen"),
    [
        ("trt86.log", ["/fc1/MatMul + /fc1/Add", "/proj/MatMul", "/small/MatMul"], ["/fc1/MatMul + /fc1/Add"]),
        ("trt86_none.log", ["/proj/MatMul"], []),
        ("trt10.log", ["/fc1/MatMul_myl0_3", "/proj/MatMul_myl0_5", "/small/MatMul_myl1_2"], ["/fc1/MatMul_myl0_3"]),
        (
            "trt11.log",
            ["/fc1/MatMul_myl0_3", "/proj/MatMul_myl0_5", "/small/MatMul_myl0_9"],
            ["/fc1/MatMul_myl0_3", "/small/MatMul_myl0_9"],
        ),
    ],
)
def test_sparse_layers_are_read_in_every_wording(name: str, eligible: list[str], chosen: list[str]) -> None:
    found = read_sparsity(log(name))
    assert found.said
    assert (list(found.eligible), list(found.chosen)) == (eligible, chosen)
    assert (found.eligible_count, found.chosen_count) == (len(eligible), len(chosen))


def test_counts_without_names_are_added_over_the_regions() -> None:
    found = read_sparsity(log("trt10_counts.log"))
    assert (found.said, found.eligible, found.chosen) == (True, (), ())
    assert (found.eligible_count, found.chosen_count) == (41, 20)


def test_names_count_where_a_region_is_printed_with_and_without_them() -> None:
    found = read_sparsity(
        [
            "[V] (Sparsity) Found 2 layer(s) eligible to use sparse tactics",
            "[X] (Sparsity) Found 2 layer(s) eligible to use sparse tactics: a, b",
            "[V] (Sparsity) Chose 1 layer(s) using sparse tactics",
            "[X] (Sparsity) Chose 1 layer(s) using sparse tactics: a",
            "[X] (Sparsity) Chose 1 layer(s) using sparse tactics: a",
        ]
    )
    assert (found.eligible_count, found.chosen_count) == (2, 1)
    only = read_sparsity(
        ["(Sparsity) Chose 3 layer(s) using sparse tactics", "(Sparsity) Chose 1 layer(s) using sparse tactics: a"]
    )
    assert only.chosen_count == 1


def test_a_log_that_says_nothing_of_sparsity_is_told_from_one_that_found_nothing() -> None:
    assert not read_sparsity(["[V] Detected 1 inputs and 1 output network tensors."]).said
    assert not read_sparsity(["[W] (Sparsity) Please provide sparse weights if you want to refit sparse layers"]).said
    nothing = read_sparsity(["[V] (Sparsity) Found 0 layer(s) eligible to use sparse tactics:"])
    assert (nothing.said, nothing.eligible_count, nothing.chosen_count) == (True, 0, 0)


def test_another_profile_s_layers_do_not_count() -> None:
    line = "(Sparsity) Found 2 layer(s) eligible to use sparse tactics: /a/MatMul_myl0_1, /a/MatMul [profile 1]_myl1_3"
    assert read_sparsity([line]).eligible == ("/a/MatMul_myl0_1",)


def test_what_was_chosen_was_eligible() -> None:
    assert read_sparsity(["(Sparsity) Chose 1 layer(s) using sparse tactics: a"]).eligible == ("a",)


@pytest.mark.parametrize(
    ("name", "layer", "precision", "output", "sparse", "region"),
    [
        ("trt86.json", "/fc1/MatMul + /fc1/Add", "INT8", "INT8", True, False),
        ("trt86.json", "/proj/MatMul", "INT8", "", False, False),  # HasSparseWeights is 1 there
        ("trt10.json", "/fc1/MatMul_myl0_3", "INT8", "INT8", True, True),
        ("trt10.json", "/proj/MatMul_myl0_5", "INT8", "FP16", False, True),
        ("trt10.json", "__myl_FcMulAdd_myl1_2", "INT8", "FP16", False, True),
        ("trt11.json", "/fc1/MatMul_myl0_3", "INT8", "INT8", True, True),
        ("trt11.json", "/proj/MatMul_myl0_5", "INT8", "FP16", False, True),
        ("trt11.json", "/float/MatMul_myl0_11", "BF16", "FP32", False, True),
    ],
)
def test_a_layer_is_read_in_every_schema(
    name: str, layer: str, precision: str, output: str, sparse: bool, region: bool
) -> None:
    found = layers(name)[layer]
    assert (found.precision, found.output, found.sparse, found.region) == (precision, output, sparse, region)


def test_the_onnx_nodes_of_a_layer_are_named() -> None:
    assert layers("trt86.json")["/fc1/MatMul + /fc1/Add"].nodes == ("/fc1/MatMul", "/fc1/Add")
    assert layers("trt10.json")["/fc1/MatMul_myl0_3"].nodes == ("/fc1/MatMul", "/fc1/out_q")
    assert "/small/MatMul" in layers("trt10.json")["__myl_FcMulAdd_myl1_2"].nodes


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("{ForeignNode[/a/MatMul + /a/Add.../b/MatMul]}", ("/a/MatMul", "/a/Add", "/b/MatMul")),
        ("/blocks.0/fc1/MatMul_myl0_7 [profile 1]", ("/blocks.0/fc1/MatMul",)),
        ("/blocks.0/fc1/MatMul [profile 1]_myl1_109", ("/blocks.0/fc1/MatMul",)),
        ("MatMul_401", ("MatMul_401",)),
        ("node_MatMul_12_myl3_40", ("node_MatMul_12",)),
        ("/q/MatMul || /k/MatMul", ("/q/MatMul", "/k/MatMul")),
    ],
)
def test_a_layer_s_name_lists_its_nodes(name: str, nodes: tuple[str, ...]) -> None:
    assert nodes_of(name) == nodes


def test_of_several_profiles_the_first_is_read() -> None:
    assert not any("profile" in name for name in layers("trt10.json"))


def test_a_region_of_another_profile_is_left_out_whole() -> None:
    names = ["/a/MatMul_myl0_1", "__myl_FcAdd_myl0_2", "/a/MatMul [profile 1]_myl1_3", "__myl_FcAdd_myl1_4", "/b/Conv"]
    found = read_layers(json.dumps({"Layers": [{"Name": name} for name in names]}))
    assert [layer.name for layer in found] == ["/a/MatMul_myl0_1", "__myl_FcAdd_myl0_2", "/b/Conv"]


def test_names_alone_are_layers_too() -> None:
    (layer,) = read_layers('{"Layers": ["/fc1/MatMul + /fc1/Add"], "Bindings": []}')
    assert (layer.nodes, layer.precision, layer.tactic) == (("/fc1/MatMul", "/fc1/Add"), "", "")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"Layers": 3}'])
def test_what_is_no_inspector_s_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_layers(text)


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x32x64", "INT8"),
        ("sm80_xmma_fprop_implicit_gemm_indexed_wo_smem_f16f16_f16f16_f16_nhwckrsc_nhwc", "FP16"),
        ("sm90_xmma_gemm_e4m3f16_e4m3f32_f32_tn_n", "FP8"),
        ("__myl_MulSum_0xfa6c1858aea1b13b03f90165d7149ec6", ""),
    ],
)
def test_without_types_the_tactic_s_name_tells_the_precision(tactic: str, precision: str) -> None:
    (layer,) = read_layers(f'{{"Layers": [{{"Name": "a", "TacticName": "{tactic}"}}]}}')
    assert layer.precision == precision


PRINTED = """\
[X] Layers:
Name: old_myl0_0, LayerType: gemm, Inputs: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
[X] something else
[X] Layers:
Name: /a/MatMul_myl0_1, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,16], Datatype: Int8, Format: (Linear) \
Row major }], Constants: [ { Name: w, Dimensions: [16,8], Datatype: Half }], Outputs: [ { Name: y, Dimensions: [-1,8], \
Datatype: Float, Format: (Linear) Row major }], TacticName: sm90_xmma_sparse_gemm_i8i8, StreamId: 0, Metadata: \
[ONNX Layer: /a/MatMul]
Name: /c/Conv, LayerType: CaskConvolution, Inputs: [ { Name: i, Location: Device, Format/Datatype: Half }], Outputs: \
[ { Name: o, Format/Datatype: Half }], ParameterType: Convolution, Weights: {"Type": "Half", "Count": 9}, \
TacticName: sm80_conv, Metadata: [ONNX Layer: /c/Conv]
I/O Tensors:
Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,16]
"""


def test_the_layers_that_a_log_lists_last_are_read() -> None:
    first, second = read_printed_layers(PRINTED.splitlines())
    assert (first.name, first.kind, first.nodes) == ("/a/MatMul_myl0_1", "gemm", ("/a/MatMul",))
    assert (first.precision, first.output, first.sparse) == ("INT8", "FP32", True)
    assert (second.precision, second.output, second.kind) == ("FP16", "FP16", "CaskConvolution")
