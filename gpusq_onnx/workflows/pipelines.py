"""What to do, as callers say it: a text, a preset, a recipe, passes; with learning passes and single options put in.

"prune24{method=sparsegpt},qdq-int8"       the grammar of `--passes`
Path("recipe.toml")                        a recipe
["prune24", QdqInt8(QdqInt8Options())]     texts and passes in order; a pass need not be in any table
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline import finetune as learning
from gpusq_onnx.pipeline import grammar, recipe, table
from gpusq_onnx.pipeline.base import Pass
from gpusq_onnx.pipeline.grammar import Pipeline, Step

AnyPass: TypeAlias = str | Pass[Any] | type[Pass[Any]]
AnyPasses: TypeAlias = AnyPass | Path | Pipeline | Sequence[AnyPass]


def as_pipeline(
    passes: AnyPasses,
    *,
    finetune: int | None = None,
    finetune_steps: int | None = None,
    overrides: Iterable[str] = (),
) -> Pipeline:
    """The pipeline as it will run: presets replaced, learning passes inserted, single options set.

    Args:
        finetune, finetune_steps: epochs, or steps, of the learning passes; None: none.
        overrides: texts `PASS.KEY=VALUE`, as `--set` takes them.

    Raises:
        UsageError: text that cannot be read, unknown names or options, values out of range, both of `finetune` and
            `finetune_steps`, or nothing that they could follow.
    """
    pipeline = table.expand(_read(passes))
    training = learning.TrainingLength.given(finetune, finetune_steps)
    if training is not None:
        pipeline = learning.insert(pipeline, training)
    pipeline = grammar.apply_overrides(pipeline, overrides)
    table.resolve(pipeline)  # unknown options and values out of range are reported before a model is read
    return pipeline


def _read(passes: AnyPasses) -> Pipeline:
    if isinstance(passes, Pipeline):
        return passes
    if isinstance(passes, str):
        if passes.endswith(".toml"):
            raise UsageError(
                "the text is the name of a file, not passes",
                where="passes",
                found=repr(passes),
                hint=f"a recipe is Path({passes!r}) in Python, and --recipe {passes} on the command line",
            )
        return grammar.parse(passes)
    if isinstance(passes, os.PathLike):
        return recipe.load(Path(passes))
    if isinstance(passes, Sequence):
        steps = [step for item in passes for step in _read(item).steps]
        if steps:
            return Pipeline(tuple(steps))
    if isinstance(passes, Pass):
        options = passes.options.model_dump(mode="json", exclude_unset=True)
        return Pipeline((Step(passes.name, options, type(passes)),))
    if isinstance(passes, type) and issubclass(passes, Pass):
        return Pipeline((Step(passes.name, {}, passes),))
    raise UsageError(
        "this says no passes",
        where="passes",
        expected="a text such as 'prune24,qdq-int8', a pass, a list of these, or the Path of a recipe",
        found=repr(passes)[:80],
    )
