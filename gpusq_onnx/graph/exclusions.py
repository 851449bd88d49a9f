"""What is not pruned and not quantised, and why: every other weight is, whether or not structure has a name for it.

One row of `EXCLUSIONS` is one reason: for which kind of pass it holds, whether it gives way when the user names the
site (by `only=`; the two ends by `patch=true` and `head=true`), and the sentence about a site that plans and reports
print. The first row that applies decides.

    product       no layer: the constant is on the left, or the other operand is constant, too
    double        a type that QuantizeLinear does not take
    grouped       depthwise and nearly so: tensor cores have nothing to reduce over
    few inputs    fewer input channels than `smallest`: INT8 and sparse kernels take channels in packs, so that a large
                  kernel does not make up for them
    few outputs   the same of the output channels
    first layer   it reads the image: few operations, and the input's own 8 bits are all the information there is
    head          class logits, boxes, embeddings: few operations, and errors go to the user as they are
    transposed    ConvTranspose: TensorRT has INT8 kernels for it, no sparse ones

Sources: GPUSQ-ViT section 3.3; TensorRT developer guide, "Structured Sparsity"; the numbers after them
are the usual ones of post-training quantisation (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpusq_onnx.graph.roles import FIRST_LAYERS
from gpusq_onnx.graph.sites import Site

Kind = Literal["prune", "quantise"]

SMALLEST = 16  # below, the columns or rows of one tensor-core tile are not filled


@dataclass(frozen=True)
class Exclusion:
    """One reason to leave weights as they are.

    Attributes:
        name: what it is called in tests and documents.
        kinds: the passes that it holds for.
        firm: whether it holds for a site that the user named, too.
        why: the sentence about a site (given the smallest side), or None where the reason does not apply.
    """

    name: str
    kinds: frozenset[Kind]
    firm: bool
    why: Callable[[Site, int], str | None]


def _product(site: Site, smallest: int) -> str | None:
    return site.unfit[0] if site.unfit else None


def _double(site: Site, smallest: int) -> str | None:
    wide = site.reads_as.itemsize > 4
    return f"computes in {site.reads_as.name}, which QuantizeLinear does not take" if wide else None


def _grouped(site: Site, smallest: int) -> str | None:
    if site.group == 1 or site.channels >= smallest:
        return None
    what = "depthwise" if site.channels == 1 else f"{site.group} groups of {site.channels} channels"
    return f"{what}: each output reduces over {site.channels} channel(s), nothing for a tensor core"


def _few_inputs(site: Site, smallest: int) -> str | None:
    if site.channels >= smallest:
        return None
    what = f"reduces over {site.k}" if site.k == site.channels else f"{site.channels} input channel(s)"
    return f"{what}: below {smallest} nothing is gained"


def _few_outputs(site: Site, smallest: int) -> str | None:
    return None if site.out >= smallest else f"{site.out} outputs: below {smallest} nothing is gained"


def _first_layer(site: Site, smallest: int) -> str | None:
    return "a first layer: it reads the image" if site.role in FIRST_LAYERS else None


def _head(site: Site, smallest: int) -> str | None:
    return "a head: its errors are the errors of the model" if site.role == "head" else None


def _transposed(site: Site, smallest: int) -> str | None:
    return "TensorRT has no sparse kernel for ConvTranspose" if site.op == "ConvTranspose" else None


BOTH: frozenset[Kind] = frozenset({"prune", "quantise"})
PRUNE: frozenset[Kind] = frozenset({"prune"})
QUANTISE: frozenset[Kind] = frozenset({"quantise"})
EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion("product", BOTH, True, _product),
    Exclusion("double", QUANTISE, True, _double),
    Exclusion("transposed", PRUNE, True, _transposed),
    Exclusion("first layer", BOTH, False, _first_layer),
    Exclusion("head", BOTH, False, _head),
    Exclusion("grouped", BOTH, True, _grouped),
    Exclusion("few inputs", BOTH, True, _few_inputs),
    Exclusion("few outputs", BOTH, False, _few_outputs),
)


def excluded(site: Site, kind: Kind, *, smallest: int = SMALLEST, named: bool = False) -> str | None:
    """Why a pass of this kind leaves the site alone, or None; `named`: the user asked for it, by an option."""
    rows = (row for row in EXCLUSIONS if kind in row.kinds and (row.firm or not named))
    return next((why for row in rows if (why := row.why(site, smallest)) is not None), None)
