"""The report of `build`: the engine's layers, its sparse kernels, each weight as predicted and as built, and the gate.

Truth is what the builder chose: the layer that runs the weight, its precision and kernel (engine inspector, or the
log's layer list), *eligible* and *chosen* (log; a sparse tactic in the inspector counts as chosen). The prediction is
`inspection`'s. For a layer that could have been sparse and is not, the likely reason and what would change it.

Limits: a layer is matched to a weight by the ONNX node's name; nodes without names are reported as not found. The
harness for machines with no GPU shows layers and precisions, but chooses no kernels: `known` is then false.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpusq_onnx.marks import AUTHOR
from gpusq_onnx.report.inspection import Inspection, WeightReport
from gpusq_onnx.report.kernels import Obstacle, why_dense
from gpusq_onnx.runtime.tensorrt.engine import Built
from gpusq_onnx.runtime.tensorrt.layers import Layer, nodes_of, read_layers, read_printed_layers
from gpusq_onnx.runtime.tensorrt.library import Library
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import tuned_batch
from gpusq_onnx.runtime.tensorrt.sparsity import SparsityLog, read_sparsity

AGREES = "as predicted"
_MATRIX = ("gemm", "conv", "correlation", "matmul", "matrixmultiply", "fullyconnected")


@dataclass(frozen=True)
class WeightTruth:
    """What became of one weight.

    Attributes:
        name, module, role, shape, nodes: see `inspection.WeightReport`.
        predicted, predicted_eligible: the kernel class, and whether the builder should find it fit for sparse kernels.
        layer, kind, precision, output, tactic: of the engine's layer; "" where none names the node.
        eligible, chosen: per log and tactic; None where the builder said nothing of sparsity.
        verdict: prediction against truth, in words.
        reason, remedy: why an eligible layer is dense, and what would change it; "" for the others.
    """

    name: str
    module: str
    role: str
    shape: tuple[int, int]
    nodes: tuple[str, ...]
    predicted: str
    predicted_eligible: bool
    layer: str
    kind: str
    precision: str
    output: str
    tactic: str
    eligible: bool | None
    chosen: bool | None
    verdict: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class EngineFile:
    """The engine.

    Attributes:
        path, sha256, bytes: of the file.
        cached: an earlier build of the same was taken.
        deployable: it runs on a GPU; not where the builder was the one for machines without.
        seconds: of the build itself.
    """

    path: str
    sha256: str
    bytes: int
    cached: bool
    deployable: bool
    seconds: float


@dataclass(frozen=True)
class SparseLayers:
    """The engine's sparse kernels; counts are None where the builder reported nothing.

    Attributes:
        known: the builder reported them.
        eligible, chosen: how many layers a sparse kernel fits, and how many run one.
        eligible_layers, chosen_layers: their names, as far as the log has them.
        unmatched: chosen layers that no weight of the model was found for.
    """

    known: bool
    eligible: int | None
    chosen: int | None
    eligible_layers: tuple[str, ...]
    chosen_layers: tuple[str, ...]
    unmatched: tuple[str, ...]


@dataclass(frozen=True)
class EngineDocument:
    """What `build --report` writes and the page reads: `EngineReport` as plain values.

    Attributes:
        tool: name and version.
        model, model_sha256: the ONNX file, and its digest.
        library, options: of the build, free in form.
        commands: the equal lines of trtexec and polygraphy, by their names.
        warnings: the builder's.
        layers_from: "inspector" or "log".
        verdicts: how many weights came out how.
        passed: no gate failed.
        failures: what is not met, a sentence each.
    """

    tool: str
    model: str
    model_sha256: str
    engine: EngineFile
    library: dict[str, Any]
    options: dict[str, Any]
    commands: dict[str, str]
    warnings: tuple[str, ...]
    layers_from: str
    layers: tuple[Layer, ...]
    sparsity: SparseLayers
    verdicts: dict[str, int]
    weights: tuple[WeightTruth, ...]
    passed: bool
    failures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class EngineReport:
    """What `build` found.

    Attributes:
        model, model_sha256: the ONNX file.
        built, library, options: of the build.
        commands: the same build for "trtexec" and "polygraphy".
        layers: of the engine, in its order.
        known: the builder reported sparse kernels.
        sparsity: what its log says.
        weights: one entry for each weight of the model.
        failures: gates that are not met.
    """

    model: str
    model_sha256: str
    built: Built
    library: Library
    options: BuildOptions
    commands: dict[str, str]
    layers: tuple[Layer, ...]
    known: bool
    sparsity: SparsityLog
    weights: tuple[WeightTruth, ...]
    failures: tuple[str, ...] = ()

    @property
    def chosen(self) -> int:
        """Layers that run a sparse kernel: by the log, or by their tactics where these are more."""
        return max(self.sparsity.chosen_count, sum(layer.sparse for layer in self.layers))

    @property
    def eligible(self) -> int:
        """Layers whose weights fit sparse kernels."""
        return max(self.sparsity.eligible_count, self.chosen)

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Layers that the log calls chosen and that no weight of the model was found for."""
        nodes = {node for weight in self.weights if weight.chosen for node in (*weight.nodes, *nodes_of(weight.layer))}
        return tuple(name for name in self.sparsity.chosen if not nodes & set(nodes_of(name)))

    @property
    def verdicts(self) -> dict[str, int]:
        """How many weights came out how."""
        return dict(Counter(weight.verdict for weight in self.weights).most_common())

    @property
    def document(self) -> EngineDocument:
        """What `--report` writes and the page reads."""
        built, library, known = self.built, self.library, self.known
        seconds = round(built.seconds, 2)
        file = EngineFile(str(built.plan), built.sha256, built.bytes, built.cached, library.deployable, seconds)
        eligible, chosen = (self.eligible, self.chosen) if known else (None, None)
        names = self.sparsity.eligible, self.sparsity.chosen, self.unmatched
        return EngineDocument(
            tool=AUTHOR,
            model=self.model,
            model_sha256=self.model_sha256,
            engine=file,
            library={**library.identity, "rtx": library.rtx},
            options=self.options.to_dict(),
            commands=self.commands,
            warnings=tuple(built.warnings),
            layers_from="inspector" if built.inspector else "log",
            layers=self.layers,
            sparsity=SparseLayers(known, eligible, chosen, *names),
            verdicts=self.verdicts,
            weights=self.weights,
            passed=not self.failures,
            failures=self.failures,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return self.document.to_dict()


def make_report(
    model: Path,
    digest: str,
    inspection: Inspection,
    built: Built,
    library: Library,
    options: BuildOptions,
    commands: dict[str, str],
    *,
    open_batch: bool,
) -> EngineReport:
    """Put prediction and truth side by side; `open_batch`: the model leaves the batch size to the builder's caller."""
    layers = tuple(_read(built))
    sparsity = read_sparsity(built.log)
    known = sparsity.said or bool(built.inspector)
    eligible = {node for name in sparsity.eligible for node in nodes_of(name)}
    chosen = {node for name in sparsity.chosen for node in nodes_of(name)}
    batch = tuned_batch(options.profiles[0])
    weights = []
    for weight in inspection.weights:
        layer = _layer_of(weight, layers)
        ran = (bool(chosen & set(weight.nodes)) or bool(layer and layer.sparse)) if known else None
        could = (bool(eligible & set(weight.nodes)) or bool(ran)) if known else None
        why = None
        if could and not ran:
            fused = layer is not None and layer.region and layer.kind.lower() not in _MATRIX
            level = options.optimization_level
            why = why_dense(weight.obstacles, fused=fused, batch=batch, optimization_level=level, open_batch=open_batch)
        weights.append(_truth(weight, layer, could, ran, why))
    return EngineReport(str(model), digest, built, library, options, commands, layers, known, sparsity, tuple(weights))


def _read(built: Built) -> list[Layer]:
    """The inspector's layers; the log's, where there is no inspector or it says what nobody understands."""
    try:
        return read_layers(built.inspector)
    except ValueError:
        return read_printed_layers(built.log)


def _layer_of(weight: WeightReport, layers: Sequence[Layer]) -> Layer | None:
    """The layer that multiplies: named after the node rather than made of it, among others; a matrix kernel if any."""
    for node in filter(None, weight.nodes):
        found = [layer for layer in layers if node in layer.nodes]
        if found:
            return min(found, key=lambda layer: (node not in nodes_of(layer.name), not _multiplies(layer)))
    return None


def _multiplies(layer: Layer) -> bool:
    """A matrix kernel by its kind, or by the operators that Myelin lists in the name of a generated one."""
    return layer.kind.lower() in _MATRIX or bool(re.search(r"__myl_\w*?(Fc|Corr|Conv|Gemm)(?=[A-Z_])", layer.name))


def _truth(
    weight: WeightReport, layer: Layer | None, could: bool | None, ran: bool | None, why: Obstacle | None
) -> WeightTruth:
    return WeightTruth(
        name=weight.name,
        module=weight.module,
        role=weight.role,
        shape=weight.shape,
        nodes=weight.nodes,
        predicted=str(weight.kernel),
        predicted_eligible=weight.eligible,
        layer=layer.name if layer else "",
        kind=layer.kind if layer else "",
        precision=layer.precision if layer else "",
        output=layer.output if layer else "",
        tactic=layer.tactic if layer else "",
        eligible=could,
        chosen=ran,
        verdict=_verdict(weight, layer, could, ran),
        reason=why.text if why else "",
        remedy=why.remedy if why else "",
    )


def _verdict(weight: WeightReport, layer: Layer | None, could: bool | None, ran: bool | None) -> str:
    predicted = weight.kernel
    if layer is None and not could:
        return "no layer of the engine names it"
    if not predicted.types:
        return f"built, predicted {predicted}"
    if layer and layer.precision and layer.precision not in predicted.types:
        return f"{layer.precision}, predicted {predicted.precision}"
    if ran is None:
        return f"{predicted.precision} as predicted, sparsity not reported"
    if ran != (predicted.kind == "sparse"):
        return "sparse, predicted dense" if ran else "dense, a sparse kernel was possible"
    if could != weight.eligible:
        return "eligible, predicted not" if could else "not eligible, predicted so"
    return AGREES


def precisions(layers: Iterable[Layer]) -> dict[str, int]:
    """How many layers of each kind compute in what."""
    return dict(Counter(f"{layer.kind or '?'} {layer.precision or '?'}" for layer in layers).most_common())
