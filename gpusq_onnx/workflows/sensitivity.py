"""`sensitivity`, `plan --sensitivity`: what each group of layers costs when it alone is pruned or quantised.

The result is kept under the digest of all that it depends on: model, data, preprocessing, images, forms, seed, version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from gpusq_onnx import __version__
from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import at_most
from gpusq_onnx.files import Scratch, write_text
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.parsing import parse_json
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.tuning import Look, Sensitivity
from gpusq_onnx.runtime.tensorrt.store import Store
from gpusq_onnx.tuning.groups import Groups, find_groups
from gpusq_onnx.tuning.report import SensitivityReport
from gpusq_onnx.tuning.sensitivity import measure
from gpusq_onnx.tuning.subject import Subject
from gpusq_onnx.tuning.treatments import Treatment, offered
from gpusq_onnx.workflows import samples
from gpusq_onnx.workflows.models import AnyModel, as_file, name_of
from gpusq_onnx.workflows.samples import AnyData, AnyOptions

IMAGES = 64
EXACT = 48
_FORMAT = 2  # of what is kept; another number, measured anew


def sensitivity(
    model: AnyModel,
    *,
    data: AnyData,
    data_options: AnyOptions = None,
    target: str | None = None,
    forms: Sequence[str] = (),
    images: int = IMAGES,
    exact: int | None = EXACT,
    cache: Path | None = None,
    seed: int | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> SensitivityReport:
    """Measure what each group of layers costs in each form.

    Args:
        data, data_options: see `workflows.samples`; no labels are needed.
        target: whose forms are looked at: "ampere", ...; None: INT8 and 2:4.
        forms: only these: "2:4", "int8", "2:4 int8", "w4a8", "2:4 w4a8"; empty: all that the target has.
        images: of the data, evenly spread, to calibrate and measure each group with.
        exact: pairs of group and form that are measured, one of each role, pruned and not, at least; the others are
            estimated. None: all are measured.
        cache: keep the result there, and take what is kept; None: neither.

    Raises:
        UsageError: no data, or a target or form that there is not.
        UnsupportedModelError, UnsupportedDataError, NothingMatched: as `compress`.
    """
    treatments = offered(target, forms)
    with as_file(model) as path, blaming(path), samples.opened(model, data, data_options, seed) as options:
        subject = Subject.of(path, options)
        groups = find_groups(subject.model, subject.structure, treatments)
        source = at_most(subject.source, images)
        found = measured(subject, groups, treatments, source, exact, cache, progress)
    look = Look(target, tuple(forms), images, exact)
    return SensitivityReport(name_of(model), subject.sha256, groups, found, tuple(subject.warnings), subject.data, look)


def measured(
    subject: Subject,
    groups: Groups,
    treatments: Sequence[Treatment],
    source: Source,
    exact: int | None,
    cache: Path | None,
    progress: Progress,
) -> Sensitivity:
    """The sensitivity, from the cache where it is there."""
    key = {
        "format": _FORMAT,
        "version": __version__,
        "model": subject.sha256,
        "data": source.digest(),
        "preprocess": subject.source.describe().get("preprocess"),
        "images": len(source),
        "forms": [treatment.name for treatment in treatments],
        "exact": exact,
        "seed": subject.options.seed,
    }
    store = Store(cache, "sensitivity") if cache is not None else None
    entry = store.find(key) if store is not None else None
    if entry is not None:
        return TypeAdapter(Sensitivity).validate_python(parse_json(entry.file.read_text(encoding="utf-8")))
    found = measure(subject, groups, source, exact, progress)
    if store is not None:
        with Scratch() as folder:
            write_text(folder / "sensitivity.json", json.dumps(asdict(found)))
            store.keep(key, folder / "sensitivity.json", {})
    return found
