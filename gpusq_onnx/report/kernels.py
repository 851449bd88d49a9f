"""The kernel that TensorRT can choose for a weight, what is in the way of a sparse one, and what would change it.

One set of rules for the prediction (`inspection`, from the graph alone) and for the explanation of an engine
(`engine`, where the builder has decided):

    INT8      both the input and the weight have Q/DQ
    sparse    at most 2 of each 4 along K are not zero (along C for a Conv), in FP16 or INT8; no kernel for others
    sparse INT8 wins only INT8-in, INT8-out: without Q/DQ on the output TensorRT chooses the dense kernel
    both sides of 256 and more, or the sparse kernel gains nothing

Sources: TensorRT developer guide, "Structured Sparsity"; NVIDIA/TensorRT issues 4694 (output), 3849 (256). Inferred:
the vector lengths and the batch. Limits: "likely" is meant; the builder times kernels and gives no reasons.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from gpusq_onnx.quant.formats import Format, natural
from gpusq_onnx.quant.schemes import Quantised
from gpusq_onnx.sparsity.patterns import TWO_FOUR, USEFUL_SIDE, Pattern

SMALL_BATCH = 8  # at fewer images the dense kernels wait for memory, not for arithmetic (inferred)
_VECTOR_BYTES = 16  # what tensor-core kernels load at once; of a 2:4 weight, half of the elements along K are stored
_SPARSE = {"INT8": 1, "FP16": 2}  # what TensorRT has sparse kernels of, and bytes of an element
WEIGHT_ONLY = frozenset({"INT4", "FP4"})  # codes that kernels of a float type read; others are made float at build


Deciding: TypeAlias = Literal["shared", "alignment", "pattern", "precision", "output", "caller", "research", "runtime"]
Likely: TypeAlias = Literal["size", "vector", "region", "batch", "slower"]


@dataclass(frozen=True)
class KernelClass:
    """The class of kernels that TensorRT can choose for a weight; as text "sparse INT8", "dense FP32 x INT4".

    Attributes:
        kind: "onnxruntime only": TensorRT does not take the form; "none known": the form is written for research.
        types: what it reads and, where that is another, the weight's; none where there is no kernel.
    """

    kind: Literal["sparse", "dense", "onnxruntime only", "none known"]
    types: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """The types as text."""
        return " x ".join(self.types)

    def __str__(self) -> str:
        return f"{self.kind} {self.precision}".rstrip()


ONNXRUNTIME = KernelClass("onnxruntime only")
UNKNOWN = KernelClass("none known")


@dataclass(frozen=True)
class Obstacle:
    """Something between a weight and a sparse kernel.

    Attributes:
        kind: "caller": it gets the output; "runtime": TensorRT does not take the form; "research": no kernel of
            TensorRT is known for it.
        text: what it is.
        remedy: the pass or option that would change it; "" where none does.
        decides: rules a sparse kernel out, or makes the dense one win by rule; if not, it only makes that likely.
    """

    kind: Deciding | Likely
    text: str
    remedy: str
    decides: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decides", self.kind in get_args(Deciding))


DOUBLE = Obstacle("runtime", "FP64, which TensorRT does not have", "export the model in float32")


@dataclass(frozen=True)
class WeightFacts:
    """What the rules look at.

    Attributes:
        op: MatMul, Gemm or Conv.
        out, k: the matrix; for a Conv k counts the kernel's positions, too.
        grouped: the length along which groups of four run: k, or C of a Conv.
        patterns: that its values follow, the one that leaves least first.
        zeros: share of elements that are zero, 0 to 1.
        quantised: the formats of weight, input and output.
        float_type: what it computes in without them.
        conflicts: why its values serve more than this one Linear.
        given: the graph's caller gets its output.
        unfused: its codes have scales along the reduction, so that the product runs in float.
    """

    op: str
    out: int
    k: int
    grouped: int
    patterns: tuple[Pattern, ...]
    zeros: float
    quantised: Quantised
    float_type: Format
    conflicts: tuple[str, ...] = ()
    given: bool = False
    unfused: bool = False

    @property
    def sparse(self) -> bool:
        """At most 2 of each 4 are not zero: what TensorRT's sparse kernels take."""
        return any(pattern.implies(TWO_FOUR) for pattern in self.patterns)

    @property
    def weight_only(self) -> bool:
        """Narrow codes that a kernel of a float type reads."""
        weight = self.quantised.weight
        return weight is not None and self.quantised.input is None and _as_carried(weight) in WEIGHT_ONLY

    @property
    def types(self) -> tuple[str, ...]:
        """What it computes in: the codes' type, the float type, or the input's and the weight's where these differ.

        Formats that an ONNX type carries run in that type's kernels: 4-bit values in INT8 tensors in INT8 ones.
        """
        weight, read = (
            None if fmt is None else _as_carried(fmt) for fmt in (self.quantised.weight, self.quantised.input)
        )
        if weight is not None and read is not None:
            return (weight,) if weight == read else (read, weight)
        return (self.float_type.label, weight) if weight in WEIGHT_ONLY else (self.float_type.label,)

    @property
    def precision(self) -> str:
        """The same as text."""
        return " x ".join(self.types)


def _as_carried(fmt: Format) -> str:
    return (natural(fmt.element) or fmt).label


def kernel(facts: WeightFacts, obstacles: Collection[Obstacle]) -> KernelClass:
    """The class that TensorRT can choose."""
    if DOUBLE in obstacles:
        return ONNXRUNTIME
    return KernelClass("dense" if any(o.decides for o in obstacles) else "sparse", facts.types)


def eligible(obstacles: Iterable[Obstacle]) -> bool:
    """Whether the builder should find the weight fit for sparse kernels, be one chosen or not."""
    return not any(o.decides and o.kind not in ("output", "caller") for o in obstacles)


def find_obstacles(facts: WeightFacts) -> tuple[Obstacle, ...]:
    """All that is between the weight and a sparse kernel, what decides first."""
    return (*_deciding(facts), *_remarks(facts))


def _deciding(facts: WeightFacts) -> Iterable[Obstacle]:
    if facts.float_type.name == "fp64":
        yield DOUBLE
        return
    for text in facts.conflicts:
        yield Obstacle("shared", text, "")
    if facts.grouped % 4:
        side = "C" if facts.op == "Conv" else "K"
        yield Obstacle("alignment", f"{side} = {facts.grouped} is no multiple of 4", "")
    elif not facts.sparse:
        yield Obstacle("pattern", f"{_found(facts)} ({facts.zeros:.0%} zeros)", "--passes prune24")
    if facts.unfused:
        text = "its scales lie along the reduction, where no INT8 kernel applies them: it runs in float"
        yield Obstacle("precision", text, "quantise the float model instead")
    elif facts.weight_only:
        text = f"{facts.precision} runs dense: its kernels take no sparse weight"
        yield Obstacle("precision", text, "--passes qdq-int4 writes 4-bit values for sparse INT8 kernels")
    elif facts.precision not in _SPARSE:
        parts = [part for part in ("input", "weight") if part not in facts.quantised.sides]
        what = f"quantise its {' and '.join(parts)}" if parts else "quantise it to INT8"
        words, fp16 = (", or use FP16", ", or fp16") if facts.float_type.name != "bf16" else ("", "")
        text = f"{facts.precision} has no sparse kernel: {what}{words}"
        yield Obstacle("precision", text, f"--passes 'qdq-int8{{profile=sparse-int8}}'{fp16}")
    if facts.precision == "INT8" and facts.given:
        yield Obstacle("caller", "its output is the graph's, in float, so the dense INT8 kernel wins", "")
    elif facts.precision == "INT8" and facts.quantised.output is None:
        text = "no Q/DQ on its output, so the dense INT8 kernel wins"
        yield Obstacle("output", text, "--passes 'qdq-int8{profile=sparse-int8}'")


def _found(facts: WeightFacts) -> str:
    if not facts.patterns:
        return "not 2:4"
    return f"{facts.patterns[0].name}, for which TensorRT has no kernel, and not 2:4"


def _remarks(facts: WeightFacts) -> Iterable[Obstacle]:
    if not facts.sparse:
        return
    if min(facts.out, facts.k) < USEFUL_SIDE:
        remedy = "none: left dense it is as fast and more accurate, prune24{skip=[...]}"
        yield Obstacle("size", f"below {USEFUL_SIDE} x {USEFUL_SIDE}: a sparse kernel gains little", remedy)
    if (size := _SPARSE.get(facts.precision)) is None:
        return
    along = {"K": (facts.grouped, 2 * _VECTOR_BYTES // size), "N": (facts.out, _VECTOR_BYTES // size)}
    for side, (length, multiple) in along.items():
        if length % multiple:
            text = f"{side} = {length} is no multiple of {multiple}, so kernels with long loads do not fit"
            yield Obstacle("vector", text, "")


def why_dense(
    obstacles: Iterable[Obstacle], *, fused: bool, batch: int, optimization_level: int, open_batch: bool
) -> Obstacle:
    """The likely reason why a layer that could have been sparse is dense in an engine.

    Args:
        obstacles: of the weight.
        fused: it went into a generated kernel of a Myelin region, not into a matrix kernel of its own.
        batch: the images that the engine is tuned for.
        optimization_level: the builder's, 0 to 5.
        open_batch: the caller can choose another batch.
    """
    if known := [o for o in obstacles if o.kind != "shared"]:
        return known[0]
    if fused:
        text = "fused into a generated kernel of a Myelin region, which has no sparse form"
        return Obstacle("region", text, "--passes 'qdq-int8{profile=sparse-int8}': Q/DQ on its output ends the fusion")
    if batch < SMALL_BATCH:
        remedy = "--batch 1,DEPLOYED,LARGEST tunes for the deployed batch" if open_batch else "export a larger batch"
        return Obstacle("batch", f"tuned for batch {batch}: few rows to multiply, so sparse gains little", remedy)
    remedy = "--optimization-level 5 looks longer" if optimization_level < 5 else ""
    return Obstacle("slower", "its sparse kernels were timed slower on this GPU at this shape", remedy)
