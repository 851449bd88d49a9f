"""The report of `build` as Markdown that reads well as plain text, too."""

from collections import Counter

from gpusq_onnx.report.engine import EngineReport, WeightTruth, precisions
from gpusq_onnx.report.markdown import assemble, table


def digest(report: EngineReport, *, every_layer: bool = False) -> str:
    """The report as Markdown, readable as plain text; with `every_layer`, ended by a table with a line for each."""
    built, library = report.built, report.library
    gpu = library.gpu["name"] if library.gpu else "no GPU"
    how = "taken from the cache" if built.cached else f"built in {built.seconds:.1f} s"
    lines = [f"# {built.plan}", ""]
    if not library.deployable:
        lines += ["**NOT FOR DEPLOYMENT**: it proves that the model builds; build again where the GPU is.", ""]
    lines += [
        f"- engine: {built.bytes:,} bytes, {how} by {library.name} for {gpu}",
        f"- model: {report.model}, {report.model_sha256}",
        f"- sparse kernels: {_sparsity(report)}",
        *(f"- warning: {warning}" for warning in built.warnings),
        "",
        *_commands(report),
    ]
    if report.layers:
        kinds = precisions(report.layers)
        lines += ["", f"## {len(report.layers)} layers", ""]
        lines += table(["layers", "kind and precision"], [[str(number), kind] for kind, number in kinds.items()])
    if report.weights:
        lines += ["", "## Weights: predicted and built", "", *_weights(report)]
    if dense := [weight for weight in report.weights if weight.reason]:
        lines += ["", f"## {len(dense)} eligible, yet dense", "", *_reasons(dense)]
    if every_layer and report.layers:
        lines += ["", "## Every layer", "", *_layers(report)]
    if report.failures:
        lines += ["", "gates: NOT MET", *(f"- {failure}" for failure in report.failures)]
    return assemble(lines)


def _sparsity(report: EngineReport) -> str:
    if not report.known:
        return "not reported; only a build on a GPU chooses kernels"
    return f"{report.chosen} chosen of {report.eligible} eligible layers"


def _commands(report: EngineReport) -> list[str]:
    return ["The same build:", "", "```", *report.commands.values(), "```"]


def _weights(report: EngineReport) -> list[str]:
    rows = Counter((weight.role, weight.predicted, _built(weight), weight.verdict) for weight in report.weights)
    cells = [[str(number), *row] for row, number in rows.items()]
    return table(["weights", "role", "predicted", "built", "verdict"], cells)


def _built(weight: WeightTruth) -> str:
    if not weight.layer:
        return "-"
    density = {True: "sparse ", False: "dense ", None: ""}[weight.chosen]
    after = f" -> {weight.output}" if weight.output else ""
    return f"{density}{weight.precision or '?'}{after}"


def _layers(report: EngineReport) -> list[str]:
    rows = [
        [layer.name, layer.kind, layer.precision, layer.output, "sparse" if layer.sparse else "", layer.tactic]
        for layer in report.layers
    ]
    return table(["layer", "kind", "computes in", "gives", "kernel", "tactic"], rows)


def _reasons(weights: list[WeightTruth]) -> list[str]:
    rows = Counter((weight.role, weight.reason, weight.remedy) for weight in weights)
    cells = [[str(number), role, reason, remedy or "-"] for (role, reason, remedy), number in rows.items()]
    return table(["weights", "role", "likely reason", "what would change it"], cells)
