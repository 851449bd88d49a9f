"""A choice of forms as the pipeline that makes it, and the choices that need no search: one form for all.

Layers that keep their type are named in the passes' `skip` lists, and attention cores in `skip_attention`, so that the
passes decide on everything else as they do by default.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.details import Pruned, WeightPair, rows_with
from gpusq_onnx.pipeline.grammar import Pipeline, Step, Value
from gpusq_onnx.pipeline.selectors import exactly
from gpusq_onnx.tuning.groups import ATTENTION, PRUNE, QUANTISE, Groups
from gpusq_onnx.tuning.subject import Subject
from gpusq_onnx.tuning.treatments import DENSE, TREATMENTS, Treatment


def settled(groups: Groups, choice: Mapping[str, str]) -> dict[str, str]:
    """The choice as a pipeline can carry it out: attention cores stay dense where no layer is quantised."""
    layers = [group.name for group in groups.groups if group.attention is None]
    if any(TREATMENTS[choice[name]].scheme is not None for name in layers):
        return dict(choice)
    return {name: form if name in layers else DENSE for name, form in choice.items()}


def pipeline_of(subject: Subject, groups: Groups, choice: Mapping[str, str]) -> Pipeline:
    """The pipeline of a settled choice; no steps beyond `subject.first` where all is dense."""
    forms = {site: TREATMENTS[choice[group.name]] for group in groups.groups for site in group.sites}
    sites = {site.name: site for site in subject.structure.sites}
    steps = list(subject.first)
    pruned = {name for name, form in forms.items() if form.pattern is not None}
    if pruned:
        steps.append(Step(PRUNE, _skip(groups, PRUNE, pruned, sites)))
    schemes = {name: form.scheme.name for name, form in forms.items() if form.scheme is not None}
    if schemes:
        narrow = sorted(set(schemes.values()) - {"int8"})
        name = QUANTISE[narrow[0] if narrow else "int8"]
        options = _skip(groups, name, set(schemes), sites)
        eight = [exactly(sites[site]) for site, scheme in schemes.items() if scheme == "int8"]
        if narrow and eight:
            options["eight"] = [*eight]
        floats = [g.attention for g in groups.groups if g.attention is not None and choice[g.name] == DENSE]
        if floats:
            options["skip_attention"] = [*floats]
        steps.append(Step(name, options))
    return Pipeline(tuple(steps))


def uniform(groups: Groups, treatment: Treatment) -> dict[str, str]:
    """The treatment for every group that can have it; else its scheme alone, or its pattern alone, or dense."""
    parts = [t for t in TREATMENTS.values() if t.scheme is treatment.scheme or t.scheme is None]
    parts = [t for t in parts if t.pattern is treatment.pattern or t.pattern is None]
    order = sorted(parts, key=lambda t: (t.scheme is treatment.scheme, t.pattern is treatment.pattern), reverse=True)
    choice = {}
    for group in groups.groups:
        forms = [t.name for t in order if t.name in group.operations]
        quantised = group.attention is not None and treatment.scheme is not None
        choice[group.name] = ATTENTION if quantised else forms[0]
    return choice


def _skip(groups: Groups, name: str, treated: set[str], sites: Mapping[str, Site]) -> dict[str, Value]:
    """The option that keeps a pass from what it would treat by default beyond `treated`."""
    rows = [row for row, _ in (*rows_with(groups.rows[name], Pruned), *rows_with(groups.rows[name], WeightPair))]
    left = [exactly(sites[row.tensor]) for row in rows if row.tensor not in treated]
    return {"skip": [*left]} if left else {}
