"""The pass that comes by itself: `canonical`, before the first that reorders, prunes or quantises weights.

A model with onnxruntime's own operators, which neither TensorRT nor training takes, gets it before any first pass.
Those passes find more weights after it. It is a step like any other from there on: `plan` and the report show it, and
it is in the provenance. A pipeline that names it says itself where it goes.
"""

from __future__ import annotations

from typing import Any

from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.canonical import has_runtime_operators
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.base import Context, Pass, PlanContext
from gpusq_onnx.pipeline.grammar import Pipeline, Step

NAME = "canonical"


def insert(
    pipeline: Pipeline, passes: list[Pass[Any]], model: Model, structure: Structure
) -> tuple[Pipeline, list[Pass[Any]]]:
    """The pipeline (presets expanded) and its passes as they run on this model, which is not changed."""
    compress = [index for index, step in enumerate(passes) if step.float_only and step.kind != "finetune"]
    if not compress and has_runtime_operators(model):
        compress = [0]
    if not compress or any(step.name == NAME for step in pipeline.steps):
        return pipeline, passes
    first = compress[0]
    for step in (step for step in passes[:first] if step.structural):
        try:
            rows = step.plan(model, structure, PlanContext())
        except NothingMatched:
            continue
        model = model.clone()
        step.apply(model, analyse(model), rows, Context())
        structure = analyse(model)
    quantises = any(step.kind == "quantise" for step in passes)
    inserted = Step(NAME, {} if quantises else {"attention": False})  # in float, the fused kernel is the better one
    canonical = table.one(inserted)
    try:
        canonical.plan(model, structure, PlanContext())
    except NothingMatched:
        return pipeline, passes
    longer = Pipeline((*pipeline.steps[:first], inserted, *pipeline.steps[first:]))
    return longer, [*passes[:first], canonical, *passes[first:]]
