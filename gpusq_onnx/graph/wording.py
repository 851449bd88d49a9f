"""How sentences name a node: exporters and optimisers leave nodes without a name, and '' helps nobody to find one."""

from __future__ import annotations

from onnx import NodeProto
from onnx_graphsurgeon import Node


def node_label(node: NodeProto | Node) -> str:
    """A node as errors and screens name it: by its name, else by the tensor that it makes, and by its operator."""
    if isinstance(node, NodeProto):
        op, outputs = str(node.op_type), list(node.output)
    else:
        op, outputs = str(node.op), [str(tensor.name) for tensor in node.outputs]
    if node.name:
        return f"node {str(node.name)!r} ({op})"
    first = next(filter(None, outputs), None)
    return f"the {op} node that makes {first!r}" if first else f"a {op} node without outputs"
