"""What every quantising pass shares: which tensors get a pair of which format, as plan rows, from a scheme and options.

    weights      every constant weight that `graph.exclusions` has no reason against
    inputs       those of the quantised weights, one pair a tensor, outlier channels equalised where that is exact
    outputs      where the pass wants pairs after Linears: sparse kernels are narrow in, narrow out
    attention    the operands of both products (`calibration.attention_rows`)

A pass is a `Scheme` (formats and blocks, `quant.schemes`) plus options; `calibration.quantise` carries the rows out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence, Set
from typing import Literal, TypeVar

from pydantic import Field

from gpusq_onnx.calibration.attention_rows import attention_rows, write_learned
from gpusq_onnx.calibration.quantise import QuantiseSettings, clip_of, quantise
from gpusq_onnx.calibration.rounding import ROUNDING, Rounding, rounded_by_output, rounding_of
from gpusq_onnx.errors import SelectorUnmatched, UnsupportedModelError, UsageError
from gpusq_onnx.graph.exclusions import SMALLEST
from gpusq_onnx.graph.model import Model, Node, Tensor
from gpusq_onnx.graph.operators import QDQ
from gpusq_onnx.graph.qdq.rescale import foldable_norm, own_bias
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.pipeline.base import (
    SKIP,
    Context,
    Fact,
    Pass,
    PlanContext,
    PlanRow,
    Written,
    leftover_rows,
    require_any,
)
from gpusq_onnx.pipeline.details import TensorPair, WeightPair, When
from gpusq_onnx.pipeline.facts import ExplicitQuantisation
from gpusq_onnx.pipeline.schedule import CALIBRATING, SECOND_ORDER
from gpusq_onnx.pipeline.selectors import EndsOptions, Selector, exclusion
from gpusq_onnx.quant.formats import LOW_BITS, Format
from gpusq_onnx.quant.observers import make_observer
from gpusq_onnx.quant.schemes import Scheme


class QuantiseOptions(EndsOptions):
    """Options of every quantising pass."""

    observer: Literal["auto", "minmax", "percentile", "mse", "snr", "entropy"] = Field(
        default="auto", description="of activation ranges; auto: snr, of float formats minmax"
    )
    percentile: float = Field(default=99.99, gt=50, le=100, description="of |x|, for observer=percentile")
    attention: bool = Field(default=True, description="quantise the operands of both attention products")
    skip_attention: list[int] = Field(default=[], description="attention cores to leave in float, counted from 0")
    equalise: bool = Field(
        default=True, description="move outlier channels into LayerNorms, weights and, where needed, a Mul"
    )
    bias_correction: bool = Field(default=True, description="let biases absorb the mean rounding error")
    softmax: Literal["observed", "fixed"] = Field(
        default="observed", description="its scale: calibrated, or ending at 1"
    )
    clip: Literal["mse", "absmax"] = Field(default="mse", description="how weight scales are chosen")
    rounding: Rounding = Field(default="auto", description=ROUNDING)
    only: list[str] = Field(default=[], description="roles, operators or name patterns to quantise; empty: all")
    skip: list[str] = Field(default=[], description="roles, operators or name patterns to leave in float")
    smallest: int = Field(default=SMALLEST, ge=1, description="weights with a side below this stay in float")


OptionsT = TypeVar("OptionsT", bound=QuantiseOptions)


class QuantisingPass(Pass[OptionsT]):
    """A pass that plans Q/DQ pairs by a scheme. Subclasses say which, and where they differ."""

    kind = "quantise"
    float_only = True

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """The formats that this pass gives."""

    def scheme_of(self, site: Site) -> Scheme:
        """The scheme of one site, where sites differ."""
        return self.scheme

    def wants_output(self, site: Site, given: PlanContext) -> bool:
        """Whether a quantised site's output gets a pair, too."""
        return False

    @property
    def stores_codes(self) -> bool:
        """Whether weights are stored as codes, instead of floats before Q/DQ."""
        return False

    @property
    def needs_data(self) -> bool:
        return self.scheme.input is not None or self.scheme.attention is not None

    def work(self, images: int, data: bool) -> float:
        second = rounded_by_output(self.options.rounding, self.scheme.weight, data)
        return images * ((CALIBRATING if self.needs_data else 0.0) + (SECOND_ORDER if second else 0.0))

    @property
    def narrow_outputs(self) -> bool:
        """Whether it puts pairs on the outputs of sparse Linears."""
        return False

    def writes(self) -> Written:
        return Written((self.scheme.form,), narrow_outputs=self.narrow_outputs)

    def requires(self, model: Model, structure: Structure) -> None:
        require_float(model)

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        self._require_observer()
        selector = Selector(self.options.only, self.options.skip)
        selector.check(structure.sites, self.name)
        rows = [self._weight_row(site, selector, given.data) for site in structure.sites]
        rows += leftover_rows(structure, learned=self.scheme.attention is None)
        require_any(
            rows,
            "no weight can be quantised",
            else_found="a graph without constant weights",
            hint=f"gpusq-onnx plan --full --allow-noop MODEL --passes {self.name} lists every weight; "
            "widen with only=ROLE",
        )
        chosen = {row.tensor for row in rows if not row.skipped}
        sites = [site for site in structure.sites if site.name in chosen]
        inputs = self._input_rows(sites, structure)
        rows += inputs
        rows += self._output_rows(sites, structure, given, {row.tensor for row in inputs})
        if wrong := [n for n in self.options.skip_attention if not 0 <= n < len(structure.attentions)]:
            raise SelectorUnmatched(
                f"there is no attention core {wrong[0]}",
                where=f"{self.name}.skip_attention",
                expected=f"0 to {len(structure.attentions) - 1}" if structure.attentions else "a model with attention",
            )
        if self.scheme.attention is not None:
            rows += attention_rows(structure, self.options, self.scheme.attention)
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        options = self.options
        settings = QuantiseSettings(
            observer=lambda importance, fmt: make_observer(
                options.observer, percentile=options.percentile, importance=importance, fmt=fmt
            ),
            bias_correction=options.bias_correction,
            clip=options.clip,
            codes=self.stores_codes,
        )
        quantise(model, structure, plan, settings, context)
        context.findings["scales"] |= write_learned(model, structure, plan, options.clip)

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return [ExplicitQuantisation()]

    def _require_observer(self) -> None:
        """Raise UsageError for an observer that counts steps of equal width, with a float grid."""
        formats = (self.scheme.input, self.scheme.attention)
        floats = [fmt.label for fmt in formats if fmt is not None and fmt.grid]
        if self.options.observer == "entropy" and floats:
            raise UsageError(
                f"observer=entropy does not apply to {floats[0]}: it compares histograms of equally wide steps",
                where=f"{self.name}.observer",
                expected="snr, mse, percentile or minmax",
                found="entropy",
                hint=f"{self.name}{{observer=minmax}}, what auto takes",
            )

    def _weight_row(self, site: Site, selector: Selector, data: bool) -> PlanRow:
        scheme = self.scheme_of(site)
        reason = selector.refuses(site) or exclusion(site, self.options, "quantise")
        reason = reason or no_blocks(site, scheme)
        decision = SKIP if reason else "quantise weight"
        each = f"one scale for each {scheme.block} weights" if scheme.block else "one scale an output channel"
        head = (site.name, site.path, site.role, site.op, (site.out, site.k), decision)
        if reason:
            return PlanRow(*head, reason)
        rounding = rounding_of(self.options.rounding, site, scheme.weight, data)
        how = ", rounded by GPTQ" if rounding == "gptq" else ""
        clip = clip_of(self.options.clip, site, scheme.weight)
        reason = f"{scheme.weight.label}, {each}, {clip} clip over its non-zero weights{how}"
        return PlanRow(*head, reason, WeightPair(format=scheme.weight.name, block=scheme.block, rounding=rounding))

    def _input_rows(self, sites: list[Site], structure: Structure) -> list[PlanRow]:
        shared: dict[str, tuple[Tensor, list[Site]]] = {}
        for site in sites:
            for tensor in site.activations:
                shared.setdefault(tensor.name, (tensor, []))[1].append(site)
        rows = []
        for tensor, readers in shared.values():
            fmt = _widest(self.scheme_of(site).input for site in readers)
            if fmt is None:
                continue
            equalise, centred, moved = self._moved(tensor, readers, fmt)
            why = f"one pair for the input of {' and '.join(dict.fromkeys(site.role for site in readers))}{moved}"
            if fmt.scales:
                why = f"{why}; scales of {fmt.blocks[0]} values taken at run time"
            rows.append(_row(tensor, structure, "input", readers, equalise, why, fmt, centred))
        return rows

    def _moved(self, tensor: Tensor, readers: list[Site], fmt: Format) -> tuple[When, bool, str]:
        """When an input's channels are equalised, whether it is centred, and what its row says of both."""
        if any(site.conflicts or len(site.activations) > 1 for site in readers):
            return "never", False, "; a weight is shared, so its values stay: not equalised"
        if not self.options.equalise or not all(site.is_linear for site in readers):
            return "never", False, ""
        centred = _few_levels(fmt) and all(own_bias(site) is not None for site in readers)
        then = "; an Add if its values are one-sided" if centred else ""
        if foldable_norm(tensor, readers) is None:
            return "outliers", centred, f"; a Mul if channels are outliers{then}"
        if any(self.scheme_of(site).weight.bits < fmt.bits for site in readers):
            return "outliers", centred, f"; the LayerNorm takes channels that are outliers{then}"
        return "always", centred, f"; channels equalised in the LayerNorm{then}"

    def _output_rows(
        self, sites: list[Site], structure: Structure, given: PlanContext, taken: set[str]
    ) -> list[PlanRow]:
        rows = []
        for site in sites:
            fmt = self.scheme_of(site).input
            outputs = [output for output in site.outputs if output.name not in taken]
            if not outputs or fmt is None or site.given or not self.wants_output(site, given):
                continue
            why = f"sparse {fmt.label} kernels write {fmt.label}: a pair between the bias and what follows"
            equalise: When = "never"
            if self.options.equalise and _rows_can_be_rescaled(site):
                equalise, why = "outliers", f"{why}; a Mul if channels are outliers"
            rows += [_row(output, structure, "output", [site], equalise, why, fmt) for output in outputs]
        return rows


def require_float(model: Model) -> None:
    """Raise UnsupportedModelError for a model that has Q/DQ nodes whose values are read."""
    ends = {id(tensor) for tensor in model.graph.outputs}
    pairs = [node for node in model.graph.nodes if node.op in QDQ and _is_read(node, ends)]
    if pairs:
        raise UnsupportedModelError(
            "the model is quantised already",
            where=node_label(pairs[0]),
            expected="a float model",
            found=f"{len(pairs)} QuantizeLinear and DequantizeLinear nodes",
            hint="start from the float model; a quantised one is checked by gpusq-onnx inspect",
        )


def _row(
    tensor: Tensor,
    structure: Structure,
    side: Literal["input", "output"],
    sites: list[Site],
    equalise: When,
    why: str,
    fmt: Format,
    centred: bool = False,
) -> PlanRow:
    shape = structure.shapes.get(tensor.name, ())
    names = tuple(site.name for site in sites)
    detail = TensorPair(format=fmt.name, side=side, sites=names, equalise=equalise, centred=centred)
    role = f"{side} of {sites[0].role}"
    op = next((site.op for site in sites if not site.is_linear), sites[0].op)
    return PlanRow(tensor.name, sites[0].path, role, op, shape, "quantise activation", why, detail)


def no_blocks(site: Site, scheme: Scheme) -> str | None:
    """Why a weight cannot have the scheme's blocks."""
    if not scheme.block:
        return None
    if not site.is_linear:
        return f"{scheme.weight.label} in blocks is for MatMul and Gemm"
    if site.k % scheme.block:
        return f"K = {site.k} is no multiple of the block of {scheme.block}"
    return None


def _widest(formats: Iterable[Format | None]) -> Format | None:
    """Of the formats that the readers of one tensor want, the one of most bits."""
    return max((fmt for fmt in formats if fmt is not None), key=lambda fmt: fmt.bits, default=None)


def _few_levels(fmt: Format) -> bool:
    """Whether half of a format's levels on values that never come are too many to lose."""
    return fmt.bits <= LOW_BITS and not fmt.grid


def _rows_can_be_rescaled(site: Site) -> bool:
    """Whether nobody else reads the weight or the bias."""
    if site.conflicts:
        return False
    return site.is_linear and len(site.readers) == 1 and (site.bias is None or own_bias(site) is not None)


def _is_read(node: Node, ends: Set[int]) -> bool:
    """Whether what a node makes is in `ends`, or is read by a node other than Q and DQ, directly or through these."""
    made = node.outputs
    return any(id(tensor) in ends for tensor in made) or any(
        reader.op not in QDQ or _is_read(reader, ends) for tensor in made for reader in tensor.outputs
    )
