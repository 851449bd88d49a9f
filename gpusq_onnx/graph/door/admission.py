"""The door: what a model file must satisfy before anything walks, decodes or edits it.

Rules are rows, as in `invariants`: those of `READABLE` hold for every file that is opened, those of `USABLE` besides
for a model that is to be understood. Rows of a later group may assume the earlier groups; a model that breaks one is
refused (exit code 3) with the node or tensor named. So the code beyond need not be careful: there are no cycles, no
missing operands, no tensors whose bytes contradict their shapes.

What needs shapes is not asked here, where it would cost every model its inference: see `blame`.

Source: the ONNX intermediate representation (onnx/docs/IR.md), operator schemas of the installed onnx package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.door import nodes as legal_nodes
from gpusq_onnx.graph.door import tensors as legal_tensors
from gpusq_onnx.graph.door.arrival import Arrival, Rule

READABLE: tuple[tuple[Rule, ...], ...] = (
    (legal_tensors.texts,),
    (legal_tensors.versions, legal_tensors.types, legal_tensors.sizes, legal_tensors.history),
    (legal_tensors.lengths, legal_tensors.external),
)
USABLE: tuple[tuple[Rule, ...], ...] = (
    (legal_tensors.values, legal_nodes.attributes, legal_nodes.names, legal_nodes.outputs),
    (legal_nodes.schemas, legal_nodes.element_types, legal_nodes.acyclic, legal_nodes.calls),
    (legal_nodes.weights, legal_nodes.lists),
)


def admit(arrival: Arrival, groups: Sequence[Sequence[Rule]], path: Path) -> None:
    """Refuse a model that breaks a rule.

    Raises:
        UnsupportedModelError: with the first violations of the first group that has any.
    """
    for group in groups:
        found = [text for rule in group for text in rule(arrival)]
        if found:
            raise UnsupportedModelError(
                f"the model is no legal ONNX: {found[0]}",
                where=str(path),
                found="; ".join(found[1:3]) + ("; ..." if len(found) > 3 else "") if len(found) > 1 else None,
                hint="export the model again; onnx.checker.check_model(path) shows what the exporter did",
            )
