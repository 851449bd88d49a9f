"""Which inner tensors of two models are looked at, and copies of the models that give them as outputs.

    blocks   the output of every transformer block, found by structure: nothing rescales a residual stream
    all      every float tensor that both models compute under one name; what a node only moves cannot be the first
    NAME     the tensor of that name

Passes keep the names of the tensors that they leave in place, so a name means the same on both sides. Copies are
scratch files. Making a tensor an output keeps runtimes from fusing across it: values move by rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from gpusq_onnx.errors import NothingMatched, UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import Is, operators
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.runtime.compare.taps import Tap
from gpusq_onnx.scratch import Scratch

_MOVED = operators(Is.MOVES | Is.RETYPES)
_FLOATS = {np.dtype(name) for name in ("float16", "float32", "float64")}


def choose(original: Model, compressed: Model, wanted: Sequence[str]) -> list[Tap]:
    """The taps that `wanted` ("blocks", "all", names) asks for, in the original's graph order.

    Raises:
        UsageError: a name that is not a float tensor of both models.
        NothingMatched: "blocks" of a model in which none was recognised; only outputs, which are compared anyway.
    """
    structure = analyse(original)
    blocks = {block.output for block in structure.blocks}
    kinds = infer_shapes(compressed)[1]
    made = {tensor.name for node in compressed.graph.nodes for tensor in node.outputs}
    ends = {spec.name for spec in original.outputs()}
    computed = {tensor.name for node in original.graph.nodes if node.op not in _MOVED for tensor in node.outputs}
    shared = [
        tensor.name
        for node in original.graph.nodes
        for tensor in node.outputs
        if tensor.name in made and {structure.types.get(tensor.name), kinds.get(tensor.name)} <= _FLOATS
    ]
    asked = set(wanted) - {"blocks", "all"}
    if unknown := sorted(asked - set(shared)):
        near = get_close_matches(unknown[0], shared, 3, 0.5)
        raise UsageError(
            f"--taps: {unknown[0]!r} is not a float tensor that nodes of both models make",
            expected="blocks, all, or names of tensors",
            hint=f"did you mean {', '.join(near)}?" if near else "--taps all --json - lists them",
        )
    if "blocks" in wanted and not blocks & set(shared):
        raise NothingMatched(
            "--taps blocks: no transformer block was recognised", hint="use --taps all, or name tensors"
        )
    picked = asked | (blocks if "blocks" in wanted else set()) | (computed if "all" in wanted else set())
    taps = [Tap(name, strict=name in blocks) for name in shared if name in picked - ends]
    if not taps:
        raise NothingMatched("--taps: nothing but outputs, which are compared anyway", found=", ".join(sorted(picked)))
    return taps


@contextmanager
def tapped(models: Sequence[Model], taps: Sequence[Tap]) -> Iterator[list[Path]]:
    """Files of the models whose outputs are followed by the taps; they vanish after the block."""
    with Scratch() as folder:
        paths = [folder / f"{number}.onnx" for number, _ in enumerate(models)]
        for model, path in zip(models, paths, strict=True):
            own = [spec.name for spec in model.outputs()]
            io.write_tapped(model, path, [*own, *(tap.name for tap in taps)], infer_shapes(model)[1])
        yield paths
