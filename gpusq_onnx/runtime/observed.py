"""Shapes that inference does not know, seen in one run of one image.

Many exports lose a flattened dimension (BEiT, PiT, Twins, ...), and with it the number of tokens on which the placement
of Q/DQ pairs depends. Where the shape of a product's operand or result is not known, the model runs once, in a process
of its own, with Shape probes as its only outputs. What was seen is kept in `Model.observed`.

Limits: a model that takes any size shows the size of the data; without data it is not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.pin import is_open
from gpusq_onnx.graph.probes import write_probed
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.runtime.ort import Feed
from gpusq_onnx.runtime.trial import Attempt, Trials
from gpusq_onnx.scratch import Scratch


def observed(model: Model) -> Structure:
    """The structure of a model at its size: shapes that inference does not know are those of a run on random inputs."""
    with Trials() as trials:  # a process only where something is unknown
        return observe(model, analyse(model), None, trials)


def observe(model: Model, structure: Structure, feed: Feed | None, trials: Trials) -> Structure:
    """The structure with the shapes of all products, whether inference knows them or a run shows them.

    Args:
        feed: one batch; None: random inputs, where the model's inputs have one size.

    Returns:
        `structure` itself where nothing was unknown, or the model does not run.
    """
    unclear = [name for name in dict.fromkeys(_products(structure)) if not _known(structure, name)]
    if not unclear or (feed is None and is_open(model.inputs())):
        return structure
    found = shapes_in_a_run(model, unclear, trials.with_feed(feed))
    model.observed |= found
    return analyse(model) if found else structure


def shapes_in_a_run(model: Model, tensors: Sequence[str], attempt: Attempt) -> dict[str, tuple[int, ...]]:
    """The shapes that these tensors have for one batch; empty where the model does not run."""
    with Scratch() as folder:
        path = folder / "shapes.onnx"
        outputs = write_probed(model, path, tensors, ("Shape",))
        (trial,) = attempt(path, ["in order"])
    if trial.outcome != "ran":
        return {}
    return {name: tuple(map(int, trial.outputs[shape])) for name, (shape,) in outputs.items()}


def _products(structure: Structure) -> Iterator[str]:
    for site in structure.sites:
        yield from (tensor.name for tensor in site.activations if structure.flow.is_data(tensor))
        yield from (reader.outputs[0].name for reader in site.readers)
    for attention in structure.attentions:
        for node in (attention.scores, attention.context):
            yield from (tensor.name for tensor in (*structure.flow.data_inputs(node), node.outputs[0]))
    yield from (block.output for block in structure.blocks if block.output)


def _known(structure: Structure, name: str) -> bool:
    shape = structure.shapes.get(name)
    return shape is not None and all(isinstance(dim, int) for dim in shape)
