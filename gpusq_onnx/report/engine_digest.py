"""The report of `build` in words."""

from collections import Counter

from gpusq_onnx.report.engine import EngineReport, WeightTruth, precisions
from gpusq_onnx.report.sheet import Answer, Commands, Grid, Heading, Item, Line, Part, markdown


def sheet(report: EngineReport, *, every_layer: bool = False) -> list[Part]:
    """The verdict, the engine, and what became of the weights; with `every_layer`, a table with a line for each."""
    built, library = report.built, report.library
    gpu = library.gpu["name"] if library.gpu else "no GPU"
    how = "taken from the cache" if built.cached else f"built in {built.seconds:.1f} s"
    parts: list[Part] = [Heading(str(built.plan))]
    if report.failures:
        parts += [Answer("gates: NOT MET"), *map(Item, report.failures)]
    if not library.deployable:
        parts.append(Line("NOT FOR DEPLOYMENT: it proves that the model builds; build again where the GPU is."))
    parts += [
        Item(f"sparse kernels: {_sparsity(report)}"),
        Item(f"engine: {built.bytes:,} bytes, {how} by {library.name} for {gpu}"),
        Item(f"model: {report.model}, {report.model_sha256}"),
        *(Item(f"warning: {warning}") for warning in built.warnings),
    ]
    if report.weights:
        parts += [Heading("Weights: predicted and built", 2), _weights(report)]
    if dense := [weight for weight in report.weights if weight.reason]:
        parts += [Heading(f"{len(dense)} eligible, yet dense", 2), _reasons(dense)]
    if report.layers:
        rows = [[str(number), kind] for kind, number in precisions(report.layers).items()]
        parts += [Heading(f"{len(report.layers)} layers", 2), Grid(["layers", "kind and precision"], rows)]
    if every_layer and report.layers:
        parts += [Heading("Every layer", 2), _layers(report)]
    return [*parts, Commands("the same build", list(report.commands.values()))]


def digest(report: EngineReport) -> str:
    """The sheet as Markdown, with every layer."""
    return markdown(sheet(report, every_layer=True))


def _sparsity(report: EngineReport) -> str:
    if not report.known:
        return "not reported; only a build on a GPU chooses kernels"
    return f"{report.chosen} chosen of {report.eligible} eligible layers"


def _weights(report: EngineReport) -> Grid:
    rows = Counter((weight.role, weight.predicted, _built(weight), weight.verdict) for weight in report.weights)
    cells = [[str(number), *row] for row, number in rows.items()]
    return Grid(["weights", "role", "predicted", "built", "verdict"], cells)


def _built(weight: WeightTruth) -> str:
    if not weight.layer:
        return "-"
    density = {True: "sparse ", False: "dense ", None: ""}[weight.chosen]
    after = f" -> {weight.output}" if weight.output else ""
    return f"{density}{weight.precision or '?'}{after}"


def _layers(report: EngineReport) -> Grid:
    rows = [
        [layer.name, layer.kind, layer.precision, layer.output, "sparse" if layer.sparse else "", layer.tactic]
        for layer in report.layers
    ]
    return Grid(["layer", "kind", "computes in", "gives", "kernel", "tactic"], rows)


def _reasons(weights: list[WeightTruth]) -> Grid:
    rows = Counter((weight.role, weight.reason, weight.remedy) for weight in weights)
    cells = [[str(number), role, reason, remedy or "-"] for (role, reason, remedy), number in rows.items()]
    return Grid(["weights", "role", "likely reason", "what would change it"], cells)
