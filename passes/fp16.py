"""Everything that is not quantised, and the scales, to FP16: what TensorRT 11 wants, where a network is strongly typed.

    weights, biases, norms    FP16, rounded to nearest; INT8 codes stay
    scales                    FP16, at least 6.1e-5: the scale's type is the DequantizeLinear's output type
    activations               FP16, but where FP16 overflows or is too coarse: `graph.fp16.policy` is the list
    inputs and outputs        as they were, a Cast at the border; FP16 themselves with io=float16

LayerNormalization and Softmax stay FP16, since TensorRT and onnxruntime compute them in FP32 inside; a LayerNorm in
parts becomes one, other normalisations in parts stay in FP32 between two Casts. With calibration data, what comes near
65504 is found by running the float model, named, and kept in FP32 with all that makes or reads it.

Source: TensorRT 11, strongly typed networks; ONNX operator schemas. Limits: the guard sees what the images show; bodies
of If, Loop and Scan stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field

from gpusq_onnx.calibration.extremes import magnitudes
from gpusq_onnx.errors import NothingMatched, SelectorUnmatched, UnsupportedModelError
from gpusq_onnx.graph.fp16.numeric import LARGEST, SMALLEST_NORMAL, is_single, weight_range
from gpusq_onnx.graph.fp16.policy import kept_single, masked
from gpusq_onnx.graph.fp16.rewrite import halve
from gpusq_onnx.graph.model import Model, Node, Tensor, values_of
from gpusq_onnx.graph.norms import LayerNorm, fuse, layer_norms
from gpusq_onnx.graph.operators import MOVES, QDQ
from gpusq_onnx.graph.qdq.simulated import holds_fp4
from gpusq_onnx.graph.sites import OPERATORS, module_path
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.pipeline.base import SKIP, Context, Detail, Fact, Pass, PassOptions, PlanContext, PlanRow, Written
from gpusq_onnx.pipeline.details import rows_with
from gpusq_onnx.pipeline.facts import HalfPrecision
from gpusq_onnx.quant.formats import FP4

LOST = 0.01  # share of a weight's norm that may be lost below FP16's normal numbers without a word
FUSE, NORM = "fuse", "LayerNormalization"


class Fp16Options(PassOptions):
    """Options of `fp16`."""

    io: Literal["keep", "float16"] = Field(default="keep", description="types of float graph inputs and outputs")
    overflow: Literal["float32", "refuse"] = Field(
        default="float32", description="what FP16 cannot hold: keep it, or fail"
    )
    headroom: float = Field(
        default=2.0, ge=1, le=1024, description="|x| from 65504/headroom on counts as near overflow"
    )
    images: int = Field(default=64, ge=0, description="samples that the range guard looks at; 0: weights only")
    keep: list[str] = Field(
        default=[], description="operators, node names or module paths (patterns) that stay in FP32"
    )


class Fp16(Pass[Fp16Options]):
    """See the module's text."""

    name = "fp16"
    summary = "what is not quantised, and the scales, to FP16; what would overflow stays in FP32"
    source = "TensorRT 11, strongly typed networks"
    structural = True
    Options = Fp16Options

    def writes(self) -> Written:
        return Written(("fp16",))

    def follows(self, earlier: Pass[Any]) -> str | None:
        fp4 = any(FP4.name in form for form in earlier.writes().forms)
        return "takes no NVFP4, whose products stay in float32 models" if fp4 else super().follows(earlier)

    def requires(self, model: Model, structure: Structure) -> None:
        if holds_fp4(model):
            raise UnsupportedModelError(
                "NVFP4 is written into float32 models",
                expected="a model without FP4 tensors",
                found="FP4 tensors or activations quantised at run time",
                hint="leave fp16 out after qdq-nvfp4: its products are FP4, what is around them stays float32",
            )
        node = _computes_in(model, structure, "bfloat16")
        if node is not None:
            raise _done(node, "bfloat16")

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        parts, apart = self._parts(model, structure)
        kept = self._reasons(model, structure, parts)
        done = _computes_in(model, structure, "float16")
        if done is not None and not _is_left(model, structure, kept):
            raise _done(done, "float16")
        rows = [*_constant_rows(model, structure, kept, parts), *_border_rows(model, structure, self.options.io)]
        rows += _cast_rows(model, structure, kept)
        if all(row.skipped for row in rows):
            raise NothingMatched(
                "nothing can become FP16",
                found="no float32 weight that an operator takes in FP16",
                hint="gpusq-onnx inspect --full MODEL lists the types of the weights",
            )
        over = rows_with(rows, Overflow)
        if over and self.options.overflow == "refuse":
            raise _refusal([f"{row.tensor} (up to {found.largest:.3g})" for row, found in over])
        reason = f"one {NORM}, which computes in FP32 inside, for its {len(parts[0].nodes) if parts else 0} parts"
        rows += [_node_row(norm.nodes[-1], structure, "norm", FUSE, reason) for norm in parts]
        for node in model.graph.nodes:
            if id(node) in kept and any(structure.flow.is_data(tensor) for tensor in node.outputs):
                why = f"; no {NORM}: {apart[id(node)]}" if id(node) in apart else ""
                rows.append(_node_row(node, structure, "kept", SKIP, f"FP32: {kept[id(node)]}{why}"))
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        planned = {row.tensor for row in plan if row.decision == FUSE}
        parts = [norm for norm in self._parts(model, structure)[0] if norm.output.name in planned]
        flagged = self._guard(model, structure, parts, context)
        for norm in parts:
            fuse(model, norm)
        structure = analyse(model) if parts else structure
        kept = self._reasons(model, structure, flagged=flagged)
        small = rows_with(plan, Loss)
        if small:
            texts = (f"{row.tensor} ({loss.lost:.0%})" for row, loss in small)
            context.warnings.append(f"weights too small for FP16, with the share that it loses: {_first(texts)}")
        done = halve(model, structure.types, set(kept), io=self.options.io == "float16")
        context.findings |= {"casts": done.casts, "clamped_scales": done.clamped}
        if done.clamped:
            least = f"{SMALLEST_NORMAL:.3g}"
            context.warnings.append(f"scales raised to {least}, the smallest that FP16 takes: {_first(done.clamped)}")

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return [HalfPrecision()]

    def _chosen(self, model: Model) -> set[int]:
        """The ids of the nodes that `keep` names."""
        chosen: set[int] = set()
        for pattern in self.options.keep:
            hits = {
                id(node)
                for node in model.graph.nodes
                if any(fnmatchcase(text, pattern) for text in (node.op, node.name, module_path(node)))
            }
            if not hits:
                raise SelectorUnmatched(
                    f"the pattern {pattern!r} matches no node",
                    where=f"{self.name}.keep",
                    expected="an operator, a node name or a module path, with * for any text",
                    hint="gpusq-onnx plan --full MODEL --passes fp16 lists tensors with their modules",
                )
            chosen |= hits
        return chosen

    def _parts(self, model: Model, structure: Structure) -> tuple[list[LayerNorm], dict[int, str]]:
        """The LayerNorms in parts that become one node; by node id, why others do not."""
        chosen = self._chosen(model)
        found, refused = layer_norms(model, structure.shapes)
        return [norm for norm in found if not any(id(node) in chosen for node in norm.nodes)], refused

    def _reasons(
        self, model: Model, structure: Structure, parts: Sequence[LayerNorm] = (), flagged: Collection[str] = ()
    ) -> dict[int, str]:
        fused = {id(node) for norm in parts for node in norm.nodes}
        return kept_single(model, structure.flow, structure.types, flagged, self._chosen(model), fused)

    def work(self, images: int, data: bool) -> float:
        return float(min(images, self.options.images))

    def _guard(self, model: Model, structure: Structure, parts: Sequence[LayerNorm], context: Context) -> list[str]:
        """Tensors that come near FP16's largest number, by running the model as it is."""
        if not self.options.images:
            return []
        if context.source is None:
            context.warnings.append(
                "FP16's range was checked on the weights only: with --data, activations that come near 65504 are found"
            )
            return []
        kept = self._reasons(model, structure, parts)
        inner = {tensor.name for norm in parts for node in norm.nodes[:-1] for tensor in node.outputs}
        names = [
            name
            for name, tensor in model.graph.tensors().items()
            if tensor.inputs and is_single(tensor, structure.types) and structure.flow.is_data(tensor)
            if name not in inner and any(id(node) not in kept for node in (*tensor.inputs, *tensor.outputs))
        ]
        low = masked(model.graph.nodes)
        largest, seen = magnitudes(
            model, names, structure.shapes, context.source, self.options.images, context.progress, low
        )
        limit = LARGEST / self.options.headroom
        near = {name: value for name, value in largest.items() if value > limit}
        top = dict(sorted(largest.items(), key=lambda item: -item[1])[:10])
        context.findings |= {"guard_images": seen, "largest": top, "near_overflow": near}
        texts = [f"{name} (up to {value:.3g})" for name, value in near.items()]
        if near and self.options.overflow == "refuse":
            raise _refusal(texts)
        if near:
            context.warnings.append(f"kept in FP32, since they come near 65504: {_first(texts)}")
        return list(near)


@dataclass(frozen=True)
class Overflow(Detail):
    """A constant that is too large for FP16, and its largest magnitude."""

    largest: float


@dataclass(frozen=True)
class Loss(Detail):
    """A constant that FP16 is too coarse for, and the share of it that is lost."""

    lost: float


def _constant_rows(
    model: Model, structure: Structure, kept: dict[int, str], parts: Sequence[LayerNorm]
) -> Iterable[PlanRow]:
    gone = {id(node) for norm in parts for node in norm.nodes}
    stay = {id(constant) for norm in parts for constant in (norm.gamma, norm.beta)}
    sites = {site.weight.name: site for site in structure.sites}
    for constant in model.constants():
        if not is_single(constant, structure.types):
            continue
        readers = list(constant.outputs)
        single = [node for node in readers if id(node) in kept]
        site = sites.get(constant.name)
        role = site.role if site is not None else "scale" if _is_scale(constant) else "constant"
        path = site.path if site is not None else module_path(readers[0]) if readers else ""
        detail: Detail | None = None
        found = weight_range(values_of(constant))
        if readers and id(constant) not in stay and all(id(node) in gone for node in readers):
            decision, reason = FUSE, f"goes into a {NORM}"
        elif len(single) == len(readers):
            decision, reason = SKIP, f"FP32: {kept[id(single[0])] if single else 'read in a subgraph'}"
            detail = Overflow(found.largest) if found.overflows else None
        else:
            decision, reason = "float16", "rounded to FP16"
            if role == "scale":
                reason = "the scale's type is its DequantizeLinear's output type; at least 6.1e-5"
            elif found.overflows:
                reason = "a limit or mask: saturates at 65504"
            elif found.error > LOST:
                reason = f"rounded to FP16, which loses {found.error:.1%} of numbers below {SMALLEST_NORMAL:.3g}"
            detail = Loss(found.error) if found.error > LOST else None
            if single:
                decision, reason = "float16 and float32", f"{reason}; a copy stays for {single[0].op} in FP32"
        shape = (site.out, site.k) if site is not None else tuple(constant.shape)
        op = readers[0].op if readers else ""
        yield PlanRow(constant.name, path, role, op, shape, decision, reason, detail or {})


def _border_rows(model: Model, structure: Structure, io: str) -> Iterable[PlanRow]:
    for role, tensors in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for tensor in tensors:
            if not is_single(tensor, structure.types):
                continue
            shape = structure.shapes.get(tensor.name, ())
            if io == "float16":
                yield PlanRow(tensor.name, "", role, "", shape, "float16", "io=float16: the caller feeds and gets FP16")
            else:
                reason = "keeps its type for the caller; a Cast where FP16 begins or ends"
                yield PlanRow(tensor.name, "", role, "Cast", shape, "cast", reason)


def _cast_rows(model: Model, structure: Structure, kept: Collection[int]) -> Iterable[PlanRow]:
    """Casts of what is FP16 already, as in a file that onnxruntime has optimised for a CPU: it computes in FP32."""
    for node in model.graph.nodes:
        if node.op == "Cast" and id(node) not in kept and is_single(node.outputs[0], structure.types):
            source = structure.types.get(node.inputs[0].name)
            if source is not None and source.name == "float16" and not _stays(node, structure, kept):
                yield _node_row(
                    node, structure, "cast", "float16", "goes: nodes in FP16 read its source, which is FP16"
                )


def _stays(cast: Node, structure: Structure, kept: Collection[int]) -> bool:
    """Whether only the graph's end or nodes in FP32 read a Cast."""
    made = cast.outputs[0]
    return made.name in structure.flow.outputs or all(id(reader) in kept for reader in made.outputs)


def _computes_in(model: Model, structure: Structure, kind: str) -> Node | None:
    """The first product whose result is of a type."""
    for node in model.graph.nodes:
        found = structure.types.get(node.outputs[0].name) if node.op in OPERATORS else None
        if found is not None and found.name == kind:
            return node
    return None


def _is_left(model: Model, structure: Structure, kept: Collection[int]) -> bool:
    """Whether anything but Casts and layout computes in FP32 and could in FP16."""
    return any(
        id(node) not in kept and node.op not in MOVES | {"Cast"} and is_single(tensor, structure.types)
        for node in structure.flow.nodes
        for tensor in node.outputs
        if structure.flow.is_data(tensor)
    )


def _done(node: Node, kind: str) -> NothingMatched:
    return NothingMatched(
        f"the model computes in {kind} already",
        where=node_label(node),
        expected="a float32 model",
        found=kind,
        hint="TensorRT takes it as it is; or export the model in float32 and start again",
    )


def _is_scale(constant: Tensor) -> bool:
    return any(node.op in QDQ and node.inputs[1] is constant for node in constant.outputs)


def _node_row(node: Node, structure: Structure, role: str, decision: str, reason: str) -> PlanRow:
    name = node.outputs[0].name
    return PlanRow(name, module_path(node), role, node.op, structure.shapes.get(name, ()), decision, reason)


def _first(texts: Iterable[str], count: int = 5) -> str:
    found = list(texts)
    return ", ".join(found[:count]) + (f" and {len(found) - count} more" if len(found) > count else "")


def _refusal(texts: list[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{len(texts)} tensors do not fit FP16",
        expected=f"|x| well below {LARGEST:.0f}",
        found=_first(texts),
        hint="overflow=float32 keeps them, and what reads them, in FP32",
    )
