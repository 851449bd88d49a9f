"""`report`: one self-contained HTML page drawn from what `--report` wrote, and from the models where they are at hand.

    reports      summary, totals, weights, passes, training, comparison, sensitivity, Pareto curve, timings
    models       layer by layer: sparsity, error, kernels, scales, histograms of weights
    with data    the distance of each layer's output, histograms of activations, and where the models look (`cam`)

Models that are not named are the files that the reports of `apply` are about, or without one those of `check`, as long
as they are what they were. Each is loaded once; `check`, which measures the distances, reads what it runs itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpusq_onnx.data import remembered
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import GpusqError, UsageError
from gpusq_onnx.files import require_apart, write_text
from gpusq_onnx.graph import io
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.canonical import spelled_out
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.summary import Cost, measure_countable
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.checking import CheckResult
from gpusq_onnx.report.inspection import Inspection, inspect_model
from gpusq_onnx.report.page import gallery
from gpusq_onnx.report.page import models as page_models
from gpusq_onnx.report.page.blocks import Section
from gpusq_onnx.report.page.cards import ModelFacts, Report
from gpusq_onnx.report.page.html import require_page
from gpusq_onnx.report.page.layers import layers_of
from gpusq_onnx.report.page.signals import Signal, signals_of
from gpusq_onnx.report.reading import page_of, reports_of
from gpusq_onnx.report.run import shared_totals
from gpusq_onnx.wording import worded
from gpusq_onnx.workflows import samples
from gpusq_onnx.workflows.cam import IMAGES, SHOWN, explained
from gpusq_onnx.workflows.check import CheckSettings, check
from gpusq_onnx.workflows.samples import AnyData, AnyOptions


@dataclass(frozen=True)
class _Pair:
    """The first model, and another one beside it."""

    first: Path
    other: Path
    dense: Model
    model: Model
    inspected: Inspection


@worded
def report(
    reports: Sequence[Path],
    output: Path | None = None,
    *,
    models: Sequence[Path] = (),
    data: AnyData = None,
    data_options: AnyOptions = None,
    seed: int | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> Path:
    """Draw the page of all reports, in their order; returns where it is.

    Args:
        output: None: the first report's name with the suffix .html.
        models: the first is what the others are compared with; none: those of the reports.
        data, data_options: example images; see `workflows.samples`. Needs torch (extra `train`).

    Raises:
        UsageError: a file that is not there or is no report, a page that would overwrite one, or data without models.
        UnsupportedModelError, UnsupportedDataError: a model or the data cannot be used.
        EnvironmentLacking: the extra `report` is not installed.
    """
    require_page()
    page = output or reports[0].with_suffix(".html")
    require_apart(page, (*reports, *models), "the page would overwrite a report")
    found, missing = ([(path, _loaded(path)) for path in models], "") if models else _of_reports(reports_of(reports))
    if data is not None and not found:
        what = "example images are for models, and the reports' are not where they were"
        raise UsageError(what, where="--data", hint="name them with --model, the original first")
    sections, seen = list[Section](), ModelFacts(missing=missing)
    if found:
        (first, dense), *rest = found
        others = [(path, model, inspect_model(model)) for path, model in rest]
        kernels = (others[-1][2] if others else inspect_model(dense)).kernels
        seen = ModelFacts(kernels, shared_totals(_cost(first, dense), _cost(*rest[-1])) if rest else {})
        pairs = [_Pair(first, path, dense, model, inspected) for path, model, inspected in others]
        with samples.opened(first, data, data_options, seed) as options:
            few = options if options.samples else options.model_copy(update={"samples": IMAGES})
            sections = list(_sections(found, pairs, few, progress))
    write_text(page, page_of(reports, sections, seen))
    return page


def _sections(
    models: Sequence[tuple[Path, Model]], pairs: Sequence[_Pair], options: DataOptions, progress: Progress
) -> Iterator[Section]:
    seen = options.path is not None
    for number, pair in enumerate(pairs):
        layers, shown = layers_of(pair.dense, pair.model, pair.inspected)
        distances = _distances(pair, [layer.output for layer in layers], options, progress) if seen else {}
        yield page_models.of_layers(pair.other.name, layers, shown, distances, f"model{number}")
        signals, images = _signals(pair, options) if seen else ([], 0)
        if signals:
            yield page_models.of_signals(pair.other.name, signals, images, f"model{number}")
    if seen:
        paths, loaded = [path for path, _ in models], [model for _, model in models]
        looked = explained(tuple(map(str, paths)), paths, loaded, options, progress=progress)
        yield gallery.section(looked, replace(looked, examples=tuple(looked.chosen(SHOWN))))


def _distances(
    pair: _Pair, outputs: Sequence[str], options: DataOptions, progress: Progress
) -> dict[str, float | None]:
    """How far the layers' outputs are from the first model's, by name; of those that both models have."""
    both = [{str(t.name) for node in model.graph.nodes for t in node.outputs} for model in (pair.dense, pair.model)]
    ends = {spec.name for spec in pair.dense.outputs()}
    names = [name for name in dict.fromkeys(outputs) if name in both[0] & both[1] - ends]
    if not names:
        return {}
    found = check(pair.first, pair.other, data=options, look=CheckSettings(taps=tuple(names)), progress=progress)
    taps = found.comparison.taps
    return {tap.name: tap.relative if tap.up_to_scale is None else tap.up_to_scale for tap in taps}


def _signals(pair: _Pair, options: DataOptions) -> tuple[list[Signal], int]:
    settled = remembered.settle(options, [pair.model.metadata, pair.dense.metadata], pair.first.parent)
    return signals_of(pair.model, open_source(settled.options, pair.model.inputs()))


def _loaded(path: Path) -> Model:
    with blaming(path):
        return spelled_out(io.load(path))


def _cost(path: Path, model: Model) -> Cost:
    """What a model costs as it is stored."""
    found = measure_countable(model, analyse(model))
    return found.in_files(sum(part.stat().st_size for part in (path, *io.data_files(model))))


def _of_reports(reports: Sequence[Report]) -> tuple[list[tuple[Path, Model]], str]:
    """The models that the reports are about, the original first; else none, and a sentence where one is not there."""
    files = _files_of(reports)
    loaded = list[tuple[Path, Model]]()
    for path, sha256 in files.items() if len(files) > 1 else ():
        model = _unchanged(path, sha256)
        if model is None:
            why = f"{path} is not there, or not what the report is about"
            return [], f"{why}: what only the models show, such as their layers, is left out"
        loaded.append((path, model))
    return loaded, ""


def _files_of(reports: Sequence[Report]) -> dict[Path, str]:
    """The ONNX files that runs began with and wrote, or else that were compared, with their SHA-256."""
    runs = [report for report in reports if isinstance(report, Outcome) and report.output]
    checks = [report for report in reports if isinstance(report, CheckResult)]
    named = [(run.input.path, run.input.sha256) for run in runs[:1]]
    named += [(run.output.path, run.output.sha256) for run in runs if run.output]
    if not runs:
        named = [(one.original, one.sha256[0]) for one in checks[:1]]
        named += [(one.compressed, one.sha256[1]) for one in checks if one.original == checks[0].original]
    return {Path(path): sha256 for path, sha256 in named if path.endswith(".onnx")}


def _unchanged(path: Path, sha256: str) -> Model | None:
    """The model, where it is what the report is about; "": where it can be read."""
    try:
        if not path.is_file():
            return None
        model = io.load(path)
        if sha256 and io.file_digest(path, io.data_files(model)) != sha256:
            return None
        with blaming(path):
            return spelled_out(model)
    except (OSError, ValueError, GpusqError):  # a report may name anything
        return None
