"""A model as it is at one moment, exported once: for the checks between two passes, which all look at the same graph.

It holds until the graph is edited; the label (opset, IR version) and metadata are the model's own, read when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto

from gpusq_onnx.graph.model import Large, Model


@dataclass(frozen=True)
class Snapshot:
    """One state of a model.

    Attributes:
        graph: as written, without the bytes of large initializers; not to be edited.
        large: these, with their values.
    """

    model: Model
    graph: GraphProto
    large: list[Large]

    def skeleton(self) -> ModelProto:
        """A ModelProto of its own whose large initializers are graph inputs: small, valid, for shape inference."""
        made = ModelProto()
        made.CopyFrom(self.model.header)
        made.graph.CopyFrom(self.graph)
        listed = {value.name for value in made.graph.input}
        for tensor, _, _ in self.large:
            if tensor.name not in listed:
                value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                made.graph.input.append(value)
        return made

    def for_checker(self) -> ModelProto:
        """The skeleton with a shape on every input and output, which the checker wants and runtimes do not."""
        made = self.skeleton()
        for value in (*made.graph.input, *made.graph.output):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.shape.SetInParent()
        return made


def take(model: Model) -> Snapshot:
    """The model as it is now."""
    graph, large = model.export()
    return Snapshot(model, graph, large)
