"""One-operator models, and their conversion held against onnxruntime at batch sizes that neither of them knows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from gpusq_onnx.graph.model import Model, from_proto
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.torchgraph.convert import convert

Array = NDArray[Any]
FLOAT = 1


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*numbers: Any) -> Array:
    return np.array(numbers, np.int64)


@dataclass
class Case:
    """One node: the shape of its data input after the batch, and its other inputs: constants, "x" again, or None."""

    op: str
    shape: tuple[int, ...] = (4, 6)
    constants: Sequence[Array | str | None] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 21
    positive: bool = False
    kind: Any = np.float32
    first: bool = True  # the data is the first input
    tolerance: float = 2e-6

    @property
    def name(self) -> str:
        """For pytest."""
        return f"{self.op}-{'-'.join(f'{k}={v}' for k, v in self.attributes.items())}-{self.opset}"

    def nodes(self) -> tuple[list[NodeProto], dict[str, Array]]:
        """The node, and its constants by name."""
        constants = {f"c{i}": value for i, value in enumerate(self.constants) if isinstance(value, np.ndarray)}
        others = [value if isinstance(value, str) else "" if value is None else f"c{i}"
                  for i, value in enumerate(self.constants)]  # fmt: skip
        inputs = ["x", *others] if self.first else [*others, "x"]
        outputs = [f"y{i}" for i in range(self.outputs)]
        return [helper.make_node(self.op, inputs, outputs, name="the_node", **self.attributes)], constants


def model_of(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    shape: Sequence[int],
    outputs: Sequence[str],
    *,
    batch: int | str = "batch",
    opset: int = 21,
    kind: Any = np.float32,
    name: str = "x",
) -> tuple[Model, bytes]:
    """A model with one input [batch, *shape] as this tool holds it, and as bytes for onnxruntime."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    x = helper.make_tensor_value_info(name, element, [batch, *shape])
    untyped = [helper.ValueInfoProto(name=name) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "case", [x], untyped, stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    data = proto.SerializeToString()
    return from_proto(proto, None), data


def both(case: Case) -> Iterator[tuple[Array, Array]]:
    """What onnxruntime gives, and the converted case: each output, at two batch sizes."""
    nodes, constants = case.nodes()
    outputs = list(nodes[0].output)
    model, data = model_of(nodes, constants, case.shape, outputs, opset=case.opset, kind=case.kind)
    network = convert(model)
    session = Session(data, optimize=False)
    for batch in (1, 3):
        x = values(batch, *case.shape, seed=batch)
        x = np.abs(x) + 0.1 if case.positive else x
        x = (x * 3).astype(case.kind) if case.kind is not np.float32 else x
        expected = session.run({"x": x})
        found = network(torch.from_numpy(x))
        yield from ((expected[name], found[name].detach().numpy()) for name in outputs)
