"""Which kernels weights get: `plan`, `compress` and `inspect` give one answer, on graphs of odd forms."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import gpusq_onnx
from gpusq_onnx.report.advice import for_plan, verdict

WIDTH, TOKENS = 64, 16


class Net:
    """A graph that grows from its input `x`; a call adds a node and gives its first output's name."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def __call__(self, op: str, *inputs: str, into: str = "", **attributes: object) -> str:
        made = into or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], name=f"n{len(self.nodes)}", **attributes))
        return made

    def weight(self, *shape: int) -> str:
        return self.constant((self.random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = values
        return name

    def linear(self, x: str, into: str = "", out: int = WIDTH) -> str:
        return self("MatMul", x, self.weight(WIDTH, out), into=into)

    def block(self, x: str) -> str:
        return self("Relu", self.linear(x))

    def model(self, *outputs: str, element: int = TensorProto.FLOAT) -> ModelProto:
        shape = ["b", TOKENS, WIDTH]
        graph = helper.make_graph(
            self.nodes,
            "odd",
            [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info(name, element, ["b", TOKENS, None]) for name in outputs],
            [numpy_helper.from_array(values, name) for name, values in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def _features() -> ModelProto:
    """A feature map is given out in the middle; the last Linear's output is one, too."""
    net = Net()
    net.linear(net("Relu", net.linear(net.block("x"), into="features")), into="y")
    return net.model("features", "y")


def _before_the_bias() -> ModelProto:
    """The caller gets a product without its bias."""
    net = Net()
    added = net("Add", net.linear(net.block("x"), into="product"), net.weight(WIDTH))
    net.linear(net.block(added), into="y")
    return net.model("product", "y")


def _in_a_row() -> ModelProto:
    """Linear to Linear with nothing between; the head is one, too."""
    net = Net()
    net.linear(net.linear(net.block(net.linear(net.linear("x")))), into="y", out=WIDTH // 2)
    return net.model("y")


def _and_a_sum() -> ModelProto:
    """A Linear's output goes to a Linear, and to a sum in float."""
    net = Net()
    first = net.linear(net.block("x"))
    net.linear(net("Add", net.block(first), first), into="y")
    return net.model("y")


def _one_head() -> ModelProto:
    """Attention of one head: q, k and v go into its products as they are, k through a Transpose."""
    net = Net()
    x = net.block("x")
    q, k, v = (net.linear(x) for _ in range(3))
    scores = net("Mul", net("MatMul", q, net("Transpose", k, perm=[0, 2, 1])), net.constant(np.float32(0.125)))
    context = net("MatMul", net("Softmax", scores, axis=-1), v)
    net.linear(net("Relu", net.linear(context)), into="y")
    return net.model("y")


def _tied() -> ModelProto:
    """One weight for two Linears, one of which gives an output."""
    net = Net()
    shared = net.weight(WIDTH, WIDTH)
    x = net("Relu", net("MatMul", net.block("x"), shared))
    net("MatMul", net.block(x), shared, into="y")
    return net.model("y")


def _by_identity() -> ModelProto:
    """One weight for two Linears, for the second through an Identity, as exports write what they hold twice."""
    net = Net()
    shared = net.weight(WIDTH, WIDTH)
    x = net("Relu", net("MatMul", net.block("x"), shared))
    net.linear(net("Relu", net("MatMul", x, net("Identity", shared))), into="y")
    return net.model("y")


def _shared() -> ModelProto:
    """A weight that is read transposed, too, and one that is looked up as a table."""
    net = Net()
    both, table = net.weight(WIDTH, WIDTH), net.weight(WIDTH, WIDTH)
    x = net("Relu", net("MatMul", net.block("x"), both))
    x = net("Relu", net("MatMul", x, net("Transpose", both, perm=[1, 0])))
    row = net("Gather", table, net.constant(np.asarray([[3]])))
    net.linear(net("Relu", net("Add", net("MatMul", x, table), row)), into="y")
    return net.model("y")


GRAPHS = [_features, _before_the_bias, _in_a_row, _and_a_sum, _one_head, _tied, _by_identity, _shared]
PRUNED = "prune24{method=magnitude,head=true}"
PIPELINES = [
    f"{PRUNED},qdq-int8",
    f"{PRUNED},qdq-int8{{profile=sparse-int8,head=true,equalise=false}}",
    pytest.param(f"{PRUNED},qdq-int8{{profile=sparse-int8,head=true,equalise=false}},fp16", marks=pytest.mark.long),
    pytest.param(f"{PRUNED},qdq-int4{{activations=int4,profile=sparse-int8}}", marks=pytest.mark.long),
]


@pytest.mark.parametrize("passes", PIPELINES)
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__.strip("_"))
def test_plan_compress_and_inspect_count_the_same_kernels(
    graph: Callable[[], ModelProto], passes: str, tmp_path: Path
) -> None:
    model = graph()
    planned = gpusq_onnx.plan(model, passes)
    done = gpusq_onnx.compress(model, passes, output=tmp_path / "out.onnx")
    assert planned.kernels == done.kernels == gpusq_onnx.inspect(tmp_path / "out.onnx").kernels


def test_one_weight_in_two_nodes_of_onnxruntime_is_counted_once(tmp_path: Path) -> None:
    model, passes = _tied(), "int4-weights{runtime=onnxruntime}"
    planned = gpusq_onnx.plan(model, passes)
    done = gpusq_onnx.compress(model, passes, output=tmp_path / "out.onnx")
    found = gpusq_onnx.inspect(tmp_path / "out.onnx")
    assert planned.kernels == done.kernels == found.kernels
    assert sorted(len(weight.nodes) for weight in found.weights) == [1, 1, 2]


def test_what_the_caller_gets_is_no_output_of_a_sparse_int8_kernel(tmp_path: Path) -> None:
    passes = f"{PRUNED},qdq-int8{{profile=sparse-int8,head=true}}"
    done = gpusq_onnx.compress(_features(), passes, output=tmp_path / "out.onnx")
    assert done.kernels == {"dense INT8": 2, "sparse INT8": 1}
    nodes, outputs = done.model.graph.node, {value.name for value in done.model.graph.output}
    read = {name for node in nodes for name in node.input} | outputs
    assert [node.name for node in nodes if not read & set(node.output)] == []
    assert outputs & {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"} == set()
    reasons = [obstacle.text for weight in done.weights for obstacle in weight.obstacles if obstacle.kind == "caller"]
    assert reasons == ["its output is the graph's, in float, so the dense INT8 kernel wins"] * 2
    given = [weight for weight in done.weights if weight.kernel.kind == "dense"]
    assert verdict(given, will=True).endswith("2 dense INT8: outputs that are the graph's (2)")


@pytest.mark.parametrize("more", ["", pytest.param(",qat{epochs=1,steps=2,batch=8}", marks=pytest.mark.long)])
def test_a_weight_that_others_read_is_four_bit_where_the_plan_says_so(more: str, tmp_path: Path) -> None:
    if more:
        pytest.importorskip("torch")
    model, passes = _shared(), f"qdq-int4{{only=[linear]}}{more}"
    data = np.random.default_rng(1).standard_normal((16, TOKENS, WIDTH)).astype(np.float32)
    planned = gpusq_onnx.plan(model, passes, data=data)
    assert [row.reason.split(", ")[2] for row in planned.rows if row.decision == "quantise weight"] == [
        "mse clip over its non-zero weights",
        *["absmax clip over its non-zero weights"] * 3,
    ]
    done = gpusq_onnx.compress(model, passes, data=data, output=tmp_path / "out.onnx")
    found = gpusq_onnx.inspect(tmp_path / "out.onnx").weights
    assert [weight.format for weight in found] == ["int4-in-int8"] * 4 + [""]
    totals = [result.report["after"]["total"]["bit_operations"] for result in (planned, done)]
    assert totals[0] == totals[1]


@pytest.mark.parametrize(
    ("passes", "kernels"),
    [
        ("int4-weights{runtime=onnxruntime}", {"dense FP32": 1, "onnxruntime only": 2}),
        ("qdq-int4{deployment=native}", {"dense FP32": 1, "none known": 2}),
    ],
)
def test_forms_that_tensorrt_has_no_kernel_for_are_none_in_the_plan(
    passes: str, kernels: dict[str, int], tmp_path: Path
) -> None:
    net = Net()
    net.linear(net.block(net.block("x")), into="y")
    model = net.model("y")
    planned = gpusq_onnx.plan(model, passes)
    done = gpusq_onnx.compress(model, passes, output=tmp_path / "out.onnx")
    assert planned.kernels == done.kernels == gpusq_onnx.inspect(tmp_path / "out.onnx").kernels == kernels
    assert for_plan(planned.weights, passes, None) == []


@pytest.mark.parametrize(
    ("kind", "element", "kernels", "advice", "planned"),
    [
        (
            ml_dtypes.bfloat16,
            TensorProto.BFLOAT16,
            {"dense BF16": 3},
            ["for sparse kernels (2 weights): apply --passes 'prune24,qdq-int8{profile=sparse-int8}'"],
            "for sparse kernels (2 weights): add qdq-int8{profile=sparse-int8}",
        ),
        (
            np.float64,
            TensorProto.DOUBLE,
            {"onnxruntime only": 3},
            ["for TensorRT, which has no FP64 (3 weights): export the model in float32"],
            "for TensorRT, which has no FP64 (3 weights): export the model in float32",
        ),
    ],
)
def test_advice_is_for_the_type_that_the_model_has(
    kind: type, element: int, kernels: dict[str, int], advice: list[str], planned: str
) -> None:
    net = Net()
    net.linear(net.block(net.block("x")), into="y")
    net.constants = {name: values.astype(kind) for name, values in net.constants.items()}
    model = net.model("y", element=element)
    found = gpusq_onnx.inspect(model)
    assert (found.kernels, found.advice) == (kernels, advice)
    passes = "prune24{method=magnitude}"
    assert for_plan(gpusq_onnx.plan(model, passes).weights, passes, None) == [planned]


def test_a_weight_computes_in_the_type_that_a_cast_gives_it() -> None:
    net = Net()
    x = "x"
    for kind in (np.float16, np.float64):
        cast = net("Cast", net.constant(np.ones((WIDTH, WIDTH), kind)), to=TensorProto.FLOAT)
        x = net("Relu", net("MatMul", x, cast))
    net("Identity", x, into="y")
    assert gpusq_onnx.inspect(net.model("y")).kernels == {"dense FP32": 2}


@pytest.mark.parametrize(
    "passes",
    [
        "qdq-int8",
        "prune24,qdq-int8",
        "prune48pair,qdq-int4",
        "int4-weights{block=32}",
        "int4-weights{block=32 runtime=onnxruntime}",
        "qdq-fp8",
        "qdq-nvfp4",
    ],
)
def test_a_plan_counts_what_the_file_will_hold_with_its_scales(passes: str) -> None:
    model = _features()
    planned = gpusq_onnx.plan(model, passes).outcome.after.total
    made = gpusq_onnx.compress(model, passes).outcome.after.total
    names = ("parameters", "nonzero_parameters", "stored_parameters", "packed_bytes", "bit_operations")
    assert {name: planned[name] for name in names} == pytest.approx({name: made[name] for name in names}, rel=1e-3)


def test_scales_of_eight_bits_count_and_zero_points_do_not() -> None:
    total = gpusq_onnx.compress(_features(), "qdq-nvfp4").outcome.after.total
    four_bits, floats = 2 * WIDTH * WIDTH, WIDTH * WIDTH  # the last Linear is a head
    single = 4 * 4  # two weights and their inputs have an FP32 number each
    assert total["packed_bytes"] == four_bits / 2 + four_bits / 16 + floats * 4 + single
