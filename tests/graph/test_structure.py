"""Roles, blocks and stages by structure: hand-built transformers, the embedded model, models of ../shared."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from small_graphs import FLOAT, INT64, graph, model, node, normal, proto

from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from tests.graph.attention_graphs import BY_HEAD, CONSTANTS, EXCHANGED, SOFTMAX

TESTS = Path(__file__).parents[1]
SHARED = TESTS.parents[1] / "shared" / "data"
D, TOKENS, HEADS = 8, 4, 2


class Vit:
    """A transformer, node by node; names carry no meaning."""

    def __init__(self, *, attention: str = "qkv", mlp: str = "gelu", blocks: int = 2) -> None:
        self.nodes, self.constants, self.count = [], {}, 0
        h = self.op("Conv", "x", self.weight(D, 3, 4, 4), strides=[4, 4], kernel_shape=[4, 4])
        h = self.op("Reshape", h, self.numbers(0, D, TOKENS))
        h = self.op("Transpose", h, perm=[0, 2, 1])
        for _ in range(blocks):
            h = self.op("Add", h, getattr(self, f"_{attention}")(self.norm(h)))
            h = self.op("Add", h, getattr(self, f"_{mlp}")(self.norm(h)))
        h = self.op("ReduceMean", self.norm(h), self.numbers(1), keepdims=0)
        self.nodes.append(node("Gemm", [h, self.weight(5, D), self.weight(5)], ["y"], transB=1))

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes):
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int) -> str:
        name = self.name()
        self.constants[name] = normal(*shape, seed=self.count)
        return name

    def numbers(self, *values: int) -> str:
        name = self.name()
        self.constants[name] = np.array(values)
        return name

    def norm(self, h: str) -> str:
        return self.op("LayerNormalization", h, self.weight(D), self.weight(D))

    def linear(self, h: str, k: int, n: int, *, bias_first: bool = False) -> str:
        product = self.op("MatMul", h, self.weight(k, n))
        return self.op("Add", *((self.weight(n), product) if bias_first else (product, self.weight(n))))

    def _core(self, q: str, k: str, v: str) -> str:
        scores = self.op("Mul", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), self.weight(1))
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return self._join(context)

    def _join(self, context: str) -> str:
        merged = self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), self.numbers(0, 0, D))
        return self.linear(merged, D, D)

    def heads(self, h: str) -> str:
        return self.op("Transpose", self.op("Reshape", h, self.numbers(0, 0, HEADS, D // HEADS)), perm=[0, 2, 1, 3])

    def _qkv(self, h: str) -> str:
        packed = self.op("Reshape", self.linear(h, D, 3 * D), self.numbers(0, 0, 3, HEADS, D // HEADS))
        packed = self.op("Transpose", packed, perm=[2, 0, 3, 1, 4])
        parts = self.op("Split", packed, outputs=3, axis=0, num_outputs=3)
        return self._core(*[self.op("Squeeze", part, self.numbers(0)) for part in parts])

    def _separate(self, h: str) -> str:
        return self._core(*[self.heads(self.linear(h, D, D, bias_first=True)) for _ in range(3)])

    def _q_and_kv(self, h: str) -> str:
        k, v = self.op("Split", self.linear(h, D, 2 * D), outputs=2, axis=-1, num_outputs=2)
        return self._core(self.heads(self.linear(h, D, D)), self.heads(k), self.heads(v))

    def _fused(self, h: str) -> str:
        return self._join(self.op("Attention", *[self.heads(self.linear(h, D, D)) for _ in range(3)]))

    def _gelu(self, h: str) -> str:
        return self.linear(self.op("Gelu", self.linear(h, D, 4 * D)), 4 * D, D)

    def _erf(self, h: str) -> str:
        up = self.linear(h, D, 4 * D)
        erf = self.op("Erf", self.op("Div", up, self.weight(1)))
        half = self.op("Mul", self.op("Mul", up, self.op("Add", erf, self.weight(1))), self.weight(1))
        return self.linear(half, 4 * D, D, bias_first=True)

    def _swiglu(self, h: str) -> str:
        gate, up = self.linear(h, D, 3 * D), self.linear(h, D, 3 * D)
        return self.linear(self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up), 3 * D, D)

    def model(self, opset: int = 21):
        return model(proto(self.nodes, [("x", FLOAT, ["n", 3, 8, 8])], [("y", FLOAT, ["n", 5])], self.constants, opset))


@pytest.mark.parametrize(
    ("attention", "projections"),
    [("qkv", ["qkv"]), ("separate", ["q", "k", "v"]), ("q_and_kv", ["kv", "q"]), ("fused", ["q", "k", "v"])],
)
@pytest.mark.parametrize(("mlp", "ups"), [("gelu", 1), ("erf", 1), ("swiglu", 2)])
def test_every_role_of_every_block(attention: str, projections: list[str], mlp: str, ups: int):
    structure = analyse(Vit(attention=attention, mlp=mlp).model(23))
    block = [*projections, "proj", *["fc1"] * ups, "fc2"]
    assert [site.role for site in structure.sites] == ["patch_embed", *block, *block, "head"]
    assert [[site.role for site in b.sites] for b in structure.blocks] == [block, block]
    assert [b.width for b in structure.blocks] == [D, D]
    assert [a.fused for a in structure.attentions] == [attention == "fused"] * 2
    assert {a.tokens for a in structure.attentions} == {TOKENS}
    assert [a.proj.role for a in structure.attentions if a.proj] == ["proj", "proj"]
    adds = {t.name: n for n in structure.flow.nodes for t in n.outputs if n.op == "Add"}
    for one in structure.blocks:
        assert adds[one.output].outputs[0].outputs[0].op == "LayerNormalization"


@pytest.mark.parametrize(("blocks", "stages"), [(3, [3]), (4, [1, 1, 1, 1]), (6, [2, 1, 1, 2]), (8, [2, 2, 2, 2])])
def test_one_width_has_four_stages_of_about_equal_depth(blocks: int, stages: list[int]):
    structure = analyse(Vit(blocks=blocks).model())
    assert sum(stages) == blocks
    assert [len(stage) for stage in structure.stages] == stages
    assert structure.feature_maps == [stage[-1].output for stage in structure.stages]


def test_a_conv_without_attributes_is_a_stem():
    nodes = [node("Conv", ["x", "w"], ["y"])]
    structure = analyse(
        model(proto(nodes, [("x", FLOAT, [1, 4, 5, 5])], [("y", FLOAT, None)], {"w": normal(8, 4, 3, 3)}))
    )
    assert [s.role for s in structure.sites] == ["stem"]


def test_a_linear_in_the_middle_is_a_linear_and_one_in_a_branch_is_no_site():
    branch = graph([node("MatMul", ["h", "v"], ["b"])], [], [("b", FLOAT, None)], {})
    branch.initializer.append(numpy_helper.from_array(normal(8, 8), "v"))
    other = graph([node("Identity", ["h"], ["o"])], [], [("o", FLOAT, None)], {})
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        node("If", ["c"], ["i"], then_branch=branch, else_branch=other),
        node("MatMul", ["i", "w2"], ["y"]),
    ]
    inputs = [("x", FLOAT, [5, 8]), ("c", 9, [])]
    constants = {"w1": normal(8, 8), "w2": normal(8, 8)}
    structure = analyse(model(proto(nodes, inputs, [("y", FLOAT, None)], constants)))
    assert {s.name: s.role for s in structure.sites} == {"w1": "linear", "w2": "head"}


def test_a_head_is_found_through_a_body_that_reads_it_from_outside():
    body = graph(
        [node("Identity", ["go"], ["on"]), node("Gather", ["masks", "i"], ["row"])],
        [("i", INT64, []), ("go", TensorProto.BOOL, [])],
        [("on", TensorProto.BOOL, []), ("row", FLOAT, None)],
        {},
    )
    nodes = [
        node("MatMul", ["x", "w"], ["masks"]),
        node("Shape", ["masks"], ["size"], end=1),
        node("Squeeze", ["size"], ["rounds"]),
        node("Loop", ["rounds", ""], ["rows"], body=body),
    ]
    made = proto(nodes, [("x", FLOAT, [5, 8])], [("rows", FLOAT, None)], {"w": normal(8, 8)})
    assert [site.role for site in analyse(model(made)).sites] == ["head"]


@pytest.mark.parametrize("shown", [False, True])
def test_what_a_product_of_two_features_is_made_of_is_no_head_unless_it_is_an_output_itself(shown: bool):
    nodes = [
        node("MatMul", ["x", "pixels"], ["p"]),
        node("MatMul", ["x", "queries"], ["q"]),
        node("Transpose", ["q"], ["t"], perm=[1, 0]),
        node("MatMul", ["p", "t"], ["m"]),
        node("Shape", ["p"], ["size"], end=1),
        node("Concat", ["size", "rest"], ["target"], axis=0),
        node("Reshape", ["m", "target"], ["masks"]),
        node("MatMul", ["x", "classes"], ["c"]),
        node("MatMul", ["c", "bins"], ["expected"]),
    ]
    outputs = [("masks", FLOAT, None), ("expected", FLOAT, None), *([("q", FLOAT, None)] if shown else [])]
    constants = {"pixels": normal(8, 8), "queries": normal(8, 8), "classes": normal(8, 16)}
    constants |= {"bins": normal(16), "rest": np.array([5])}
    structure = analyse(model(proto(nodes, [("x", FLOAT, [5, 8])], outputs, constants)))
    expected = {"pixels": "linear", "queries": "head" if shown else "linear", "classes": "head"}
    assert {site.name: site.role for site in structure.sites} == expected


@pytest.mark.parametrize("cached", [False, True], ids=["first token", "a cache of earlier tokens"])
def test_keys_and_values_that_go_into_a_cache_are_no_heads(cached: bool):
    nodes = list(BY_HEAD)
    if cached:
        nodes += [node("Concat", [f"past_{letter}", letter], [f"{letter}_all"], axis=2) for letter in "kv"]
    else:
        nodes += [node("Identity", [letter], [f"{letter}_all"]) for letter in "kv"]
    nodes += [
        node("Transpose", ["k_all"], ["turned"], perm=EXCHANGED),
        node("MatMul", ["q", "turned"], ["s"]),
        *SOFTMAX,
        node("MatMul", ["p", "v_all"], ["o"]),
        node("Transpose", ["o"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "flat"], ["o2"]),
        node("MatMul", ["o2", "wo"], ["y"]),
    ]
    past = [(f"past_{letter}", FLOAT, [2, 2, 7, 32]) for letter in "kv"] if cached else []
    constants = {name: CONSTANTS[name] for name in ("wq", "wk", "wv", "wo", "heads", "flat")}
    outputs = [(name, FLOAT, None) for name in ("y", "k_all", "v_all")]
    structure = analyse(model(proto(nodes, [("x", FLOAT, [2, 5, 64]), *past], outputs, constants)))
    assert {site.name: site.role for site in structure.sites} == {"wq": "q", "wk": "k", "wv": "v", "wo": "proj"}


def test_boxes_and_classes_whose_regions_are_read_next_are_heads():
    """As in R-CNNs: boxes go out, and say with the classes where a mask is looked for; those of a stage do not."""
    nodes = [
        node("MatMul", ["x", "stage"], ["early"]),
        node("RoiAlign", ["map", "early", "batch"], ["again"], output_height=2, output_width=2),
        node("Reshape", ["again", "flat"], ["rows"]),
        node("MatMul", ["rows", "trunk"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "boxes"], ["b"]),
        node("MatMul", ["r", "classes"], ["c"]),
        node("ReduceMax", ["c"], ["best"], axes=[1], keepdims=0),
        node("Greater", ["best", "least"], ["good"]),
        node("NonZero", ["good"], ["places"]),
        node("Squeeze", ["places", "first"], ["keep"]),
        node("Gather", ["b", "keep"], ["kept"]),
        node("Gather", ["batch", "keep"], ["of"]),
        node("Gather", ["c", "keep"], ["scores"]),
        node("RoiAlign", ["map", "kept", "of"], ["region"], output_height=2, output_width=2),
        node("Conv", ["region", "kernel"], ["masks"]),
    ]
    inputs = [("x", FLOAT, [5, 8]), ("map", FLOAT, [1, 8, 9, 9]), ("batch", INT64, [5])]
    outputs = [("kept", FLOAT, None), ("scores", FLOAT, None), ("masks", FLOAT, None)]
    constants = {"stage": normal(8, 4), "trunk": normal(32, 8), "boxes": normal(8, 4), "classes": normal(8, 16)}
    constants |= {"kernel": normal(3, 8, 1, 1), "flat": np.array([5, 32]), "first": np.array([0])}
    constants |= {"least": np.float32(0.5)}
    structure = analyse(model(proto(nodes, inputs, outputs, constants)))
    expected = {"stage": "linear", "trunk": "linear", "boxes": "head", "classes": "head", "kernel": "head"}
    assert {site.name: site.role for site in structure.sites} == expected


@pytest.mark.parametrize("asset", ["digits_vit.onnx", "digits_vit_legacy17.onnx"])
def test_the_embedded_model_of_both_exporters(asset: str):
    structure = analyse(io.load(TESTS / "assets" / asset))
    expected = {"patch_embed": "patch_embed", "head": "head"}
    for block in range(3):
        names = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
        expected |= {f"blocks.{block}.{path}": role for path, role in names.items()}
    assert {site.path: site.role for site in structure.sites} == expected
    assert [site.block for site in structure.sites] == [None, *[0] * 4, *[1] * 4, *[2] * 4, None]
    assert [a.tokens for a in structure.attentions] == [17] * 3


@pytest.mark.parametrize(
    ("name", "roles", "blocks"),
    [
        ("vit_tiny_imagenet.onnx", dict.fromkeys("qkv proj fc1 fc2".split(), 12) | {"patch_embed": 1, "head": 1}, 12),
        (
            "deimv2_atto.onnx",
            dict.fromkeys("q k v proj".split(), 3)
            | {"fc1": 7, "fc2": 7, "conv": 48, "stem": 1, "linear": 12, "head": 2},
            7,
        ),
    ],
)
def test_real_models(name: str, roles: dict[str, int], blocks: int):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    structure = analyse(io.load(path))
    assert Counter(site.role for site in structure.sites) == roles
    assert len(structure.blocks) == blocks
