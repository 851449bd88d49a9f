"""onnxruntime's own operators as those of ONNX: the same as its kernels compute."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper
from small_graphs import FLOAT, HALF, Array, model, normal, proto, run

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import ONNXRUNTIME
from gpusq_onnx.graph.rewrites.canonical import canonicalise, has_runtime_operators, spelled_out
from gpusq_onnx.graph.rewrites.runtime_operators import RULES
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.graph.sites import find_sites

B, S, H, HEADS = 2, 5, 8, 2
WEIGHT, BIAS = normal(H, 3 * H, seed=3), normal(3 * H, seed=4)
RMS = "SimplifiedLayerNormalization"


def fused(
    op: str, inputs: list[str], constants: dict[str, Array], outputs: list[str] | None = None, **attrs: Any
) -> ModelProto:
    """A model of one such operator; inputs that are no constants are fed [B, S, H], or as `shapes` says."""
    shapes: dict[str, tuple[int, ...]] = attrs.pop("shapes", {})
    domain = "" if op == RMS else ONNXRUNTIME
    outputs = outputs or ["y"]
    fed = [name for name in inputs if name and name not in constants]
    made = proto(
        [helper.make_node(op, inputs, outputs, "n", domain=domain, **attrs)],
        [(name, FLOAT, shapes.get(name, (B, S, H))) for name in fed],
        [(name, FLOAT, None) for name in outputs if name],  # type: ignore[list-item]
        constants,
    )
    made.opset_import.append(helper.make_opsetid(ONNXRUNTIME, 1))
    return made


GAMMA, BETA = {"gamma": normal(H, seed=1)}, {"beta": normal(H, seed=2)}
SKIP = ["x", "skip", "gamma", "beta", "bias"]
IMAGE = {"x": (B, 4, 6, 6), "z": (B, 6, 4, 4)}
KERNEL = {"w": normal(6, 4, 3, 3, seed=5), "b": normal(6, seed=6)}
Q = ["q", "k", "v"]

CASES = {
    "skip norm": fused("SkipLayerNormalization", SKIP[:4], {**GAMMA, **BETA}, epsilon=1e-5),
    "skip norm, no beta": fused("SkipLayerNormalization", ["x", "skip", "gamma"], GAMMA, epsilon=1e-5),
    "skip norm, bias and sum": fused(
        "SkipLayerNormalization", SKIP, {**GAMMA, **BETA, "bias": normal(H, seed=9)}, ["y", "", "", "sum"]
    ),
    "skip norm, one skip for all": fused(
        "SkipLayerNormalization", SKIP[:4], {**GAMMA, **BETA, "skip": normal(1, S, H, seed=9)}, epsilon=1e-5
    ),
    "skip rms norm": fused(
        "SkipSimplifiedLayerNormalization", ["x", "skip", "gamma"], GAMMA, ["y", "", "", "sum"], epsilon=1e-5
    ),
    "rms norm": fused(RMS, ["x", "gamma"], GAMMA, axis=-1, stash_type=1),
    "rms norm, two axes": fused(RMS, ["x", "gamma"], {"gamma": normal(S, H, seed=1)}, axis=1, epsilon=1e-3),
    "bias gelu": fused("BiasGelu", ["x", "b"], {"b": normal(H)}),
    "fast gelu": fused("FastGelu", ["x"], {}),
    "fast gelu, bias": fused("FastGelu", ["x", "b"], {"b": normal(H)}),
    "gelu": fused("Gelu", ["x"], {}),
    "quick gelu": fused("QuickGelu", ["x"], {}, alpha=1.702),
    "matmul": fused("FusedMatMul", ["x", "w"], {"w": normal(H, 6)}, alpha=0.5),
    "matmul, transposed weight": fused("FusedMatMul", ["x", "w"], {"w": normal(6, H)}, transB=1),
    "matmul, keys": fused("FusedMatMul", ["x", "z"], {}, transB=1, alpha=0.125),
    "matmul, transposed data": fused("FusedMatMul", ["x", "z"], {}, transA=1),
    "matmul, batch inside": fused(
        "FusedMatMul", ["x", "z"], {}, transBatchA=1, shapes={"x": (5, 2, 8), "z": (2, 8, 3)}
    ),
    "matmul, batch at the end": fused(
        "FusedMatMul", ["x", "z"], {}, transBatchA=1, transA=1, shapes={"x": (5, 2, 8), "z": (2, 5, 3)}
    ),
    "gemm": fused(
        "FusedGemm", ["x", "w", "b"], {"w": normal(6, H), "b": normal(6)}, transB=1, activation="LeakyRelu",
        activation_alpha=0.2, shapes={"x": (B, H)},
    ),
    "conv": fused("FusedConv", ["x", "w", "b"], KERNEL, activation="Relu", shapes=IMAGE),
    "conv, sum": fused("FusedConv", ["x", "w", "b", "z"], KERNEL, activation="Relu", shapes=IMAGE),
    "conv, clip": fused(
        "FusedConv", ["x", "w"], {"w": KERNEL["w"]}, activation="Clip", activation_params=[-0.5, 0.5], shapes=IMAGE
    ),
    "attention": fused("Attention", ["x", "w", "b"], {"w": WEIGHT, "b": BIAS}, num_heads=HEADS),
    "attention, sizes and scale": fused(
        "Attention", ["x", "w", "b"], {"w": WEIGHT[:, :16], "b": BIAS[:16]}, num_heads=HEADS, scale=0.3,
        qkv_hidden_sizes=[4, 4, 8],
    ),
    "attention, causal and mask": fused(
        "Attention", ["x", "w", "b", "", "", "m"], {"w": WEIGHT, "b": BIAS, "m": normal(B, HEADS, S, S)},
        num_heads=HEADS, unidirectional=1,
    ),
    "heads": fused("MultiHeadAttention", Q, {}, num_heads=HEADS, shapes={"k": (B, 7, H), "v": (B, 7, H)}),
    "heads, bias and mask": fused(
        "MultiHeadAttention", [*Q, "b", "", "m"], {"b": BIAS, "m": normal(1, HEADS, S, S)}, num_heads=HEADS
    ),
    **{
        f"heads, causal, {keys} keys": fused(
            "MultiHeadAttention", Q, {}, num_heads=HEADS, unidirectional=1,
            shapes={"k": (B, keys, H), "v": (B, keys, H)},
        )
        for keys in (S - 2, S, S + 2)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_computes_as_the_kernel_does(case: str) -> None:
    made = CASES[case]
    feed = {
        value.name: normal(*(dim.dim_value for dim in value.type.tensor_type.shape.dim), seed=i)
        for i, value in enumerate(made.graph.input)
    }
    rewritten = model(made)
    changes = canonicalise(rewritten)
    assert changes and not any(change.kept for change in changes)
    assert not has_runtime_operators(rewritten)
    before, after = run(made, feed), run(rewritten, feed)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-4, atol=1e-5)


def test_every_row_is_tried() -> None:
    tried = {made.graph.node[0].op_type for made in CASES.values()}
    assert {op if op == RMS else f"{ONNXRUNTIME}.{op}" for op in tried} == set(RULES)


UNFIT = {
    "it returns its mean": fused("SkipLayerNormalization", SKIP[:4], {**GAMMA, **BETA}, ["y", "mean"]),
    "it has 3 operands": fused(RMS, ["x", "gamma", "beta"], {**GAMMA, **BETA}),
    "its stash_type asks": fused(RMS, ["x", "gamma"], GAMMA, stash_type=10),
    "it ends with Softsign": fused(
        "FusedGemm", ["x", "w"], {"w": normal(H, 6)}, activation="Softsign", shapes={"x": (B, H)}
    ),
    "its attributes are not those of a Gemm": fused(
        "FusedGemm", ["x", "w"], {"w": normal(H, 6)}, act="Relu", shapes={"x": (B, H)}
    ),
    "its attributes are not those of a Conv": fused(
        "FusedConv", ["x", "w"], {"w": KERNEL["w"]}, strides=1.5, shapes=IMAGE
    ),
    "it is given lengths": fused(
        "Attention", ["x", "w", "b", "m"], {"w": WEIGHT, "b": BIAS, "m": np.full(B, S, np.int32)}, num_heads=HEADS
    ),
    "its weight is computed": fused("Attention", ["x", "w", "b"], {"b": BIAS}, num_heads=HEADS, shapes={"w": (H, 24)}),
    "it has fewer than 3 operands": fused("SkipLayerNormalization", ["x", "skip"], {}),
    "its attribute epsilon is 'small'": fused("SkipLayerNormalization", SKIP[:3], GAMMA, epsilon="small"),
    "it has 3 heads for 8 channels": fused("Attention", ["x", "w"], {"w": WEIGHT}, num_heads=3),
    "its queries have 8 channels, its keys 16": fused(
        "MultiHeadAttention", ["q", "k", "v"], {}, num_heads=HEADS, shapes={"k": (B, S, 16)}
    ),
    "it has 0 heads for 8 channels": fused("MultiHeadAttention", Q, {}),
    "its weight is (8, 24)": fused("Attention", ["x", "w", "b"], {"w": WEIGHT, "b": BIAS[:5]}, num_heads=HEADS),
    "its operands are not": fused("MultiHeadAttention", ["q"], {}, num_heads=HEADS, shapes={"q": (B, S, HEADS, 3, 4)}),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_stays_has_its_reason(reason: str) -> None:
    found = model(UNFIT[reason])
    (change,) = canonicalise(found)
    assert change.kept and change.reason.startswith(reason)
    assert has_runtime_operators(found)


def test_shapes_go_through_them_before_they_are_rewritten() -> None:
    shapes, types = infer_shapes(model(CASES["skip norm, bias and sum"]))
    assert shapes["y"] == shapes["sum"] == (B, S, H)
    assert types["y"] == np.float32
    assert infer_shapes(model(CASES["matmul"]))[0]["y"] == (B, S, 6)


def test_a_bias_belongs_to_the_linear_that_it_follows() -> None:
    """Of a pre-norm block: SkipLayerNormalization(residual, MatMul, ..., bias)."""
    made = fused("SkipLayerNormalization", SKIP, {**GAMMA, **BETA, "bias": normal(H, seed=9)})
    made.graph.node.insert(0, helper.make_node("MatMul", ["h", "w"], ["skip"], "linear"))
    made.graph.input[1].name = "h"
    made.graph.initializer.append(proto([], [], [], {"w": normal(H, H)}).graph.initializer[0])
    found: Model = model(made)
    canonicalise(found)
    (site,) = find_sites(found, Dataflow(found))
    assert site.bias is not None and site.bias.name == "bias"


def test_what_inference_knows_afterwards_is_no_longer_declared(tmp_path: Path) -> None:
    """Else a tensor that becomes FP16 later would still be called float32."""
    made = CASES["conv"]
    copy = ModelProto()
    copy.CopyFrom(made)
    copy.graph.node.append(helper.make_node("Conv", ["y", "next"], ["z"], "next"))
    copy.graph.initializer.append(proto([], [], [], {"next": normal(4, 6, 1, 1)}).graph.initializer[0])
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    onnx.save(copy, tmp_path / "model.onnx")
    found = io.load(tmp_path / "model.onnx")
    assert "y" in found.typed
    canonicalise(found)
    assert found.typed == {}


def test_a_conv_of_another_domain_is_no_weight_to_prune() -> None:
    made = fused("Conv", ["x", "w"], {"w": KERNEL["w"]}, shapes=IMAGE)
    made.graph.node[0].domain = made.opset_import[-1].domain = "ours"
    found = model(made)
    assert find_sites(found, Dataflow(found)) == []


def test_weights_laid_out_for_one_processor_are_refused(tmp_path: Path) -> None:
    made = fused("Conv", ["x", "w"], {"w": KERNEL["w"]}, shapes=IMAGE)
    made.graph.node[0].domain = made.opset_import[-1].domain = "com.microsoft.nchwc"
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModelError, match="laid out the weights for one processor"):
        io.load(tmp_path / "model.onnx")


@pytest.mark.parametrize(("op", "opset"), [("LayerNormalization", 11), ("LayerNormalization", 16), (RMS, 17)])
def test_norms_that_onnxruntime_saves_into_onnx_at_any_opset(op: str, opset: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node(op, ["x", "gamma"], ["a"], "one", epsilon=1e-3),
        helper.make_node(op, ["a", "gamma"], ["y"], "two"),
    ]
    made = proto(nodes, [("x", FLOAT, (B, S, H))], [("y", FLOAT, (B, S, H))], GAMMA, opset=opset)
    onnx.save(made, tmp_path / "model.onnx")
    feed = {"x": normal(B, S, H, seed=3)}
    before = run(tmp_path / "model.onnx", feed)["y"]
    loaded = spelled_out(io.load(tmp_path / "model.onnx"))
    onnx.checker.check_model(onnx.load_from_string(io.to_bytes(loaded)), full_check=True)
    np.testing.assert_allclose(run(loaded, feed)["y"], before, rtol=1e-4, atol=1e-5)


def test_such_a_norm_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    made = proto([helper.make_node(RMS, ["x"], ["y"], "n")], [("x", FLOAT, (B, H))], [("y", FLOAT, (B, H))], {})
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModelError, match=r"'n' .* has 1 inputs, its operator takes 2 to 3"):
        io.load(tmp_path / "model.onnx")


def test_names_that_onnxruntime_gives_its_casts_are_free_for_it() -> None:
    """The Add in FP16 that comes for a SkipLayerNormalization gets such a Cast in the session."""
    inserted = "InsertedPrecisionFreeCast_x"
    nodes = [
        helper.make_node("Cast", ["x"], [inserted], "cast", to=FLOAT),
        helper.make_node("Exp", [inserted], ["e"], "exp"),
        helper.make_node("SkipLayerNormalization", ["x", "x", "gamma"], ["y"], "n", domain=ONNXRUNTIME),
    ]
    gamma = {"gamma": normal(H, dtype=np.float16)}
    made = proto(nodes, [("x", HALF, (B, S, H))], [("y", HALF, (B, S, H)), ("e", FLOAT, (B, S, H))], gamma)
    made.opset_import.append(helper.make_opsetid(ONNXRUNTIME, 1))
    rewritten = spelled_out(model(made))
    feed = {"x": normal(B, S, H, dtype=np.float16)}
    np.testing.assert_allclose(run(rewritten, feed)["y"], run(made, feed)["y"], atol=0.01)
