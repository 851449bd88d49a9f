"""The facts that passes establish and the manager keeps true: a weight's pattern, a model's symmetric quantisation.

`dumps` and `loads` let a reproducer carry them from one run into the next. Limits: those of this file only; what a
plug-in defines for itself ends with its run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType

import numpy as np

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import invariants
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq import placement
from gpusq_onnx.graph.qdq.codes import codes_of
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.parsing import parse_json
from gpusq_onnx.pipeline.base import Fact
from gpusq_onnx.sparsity.patterns import Pattern, parse_pattern


@dataclass(frozen=True)
class SparseWeight:
    """A weight follows its pattern along k; where it is quantised, its integer codes do, too.

    Attributes:
        site: the site's name.
        pattern: "2:4", ...
    """

    site: str
    pattern: str

    @property
    def text(self) -> str:
        """The fact as a sentence."""
        return f"{self.site} is {self.pattern} along its reduction axis"

    def concerns(self, site: Site) -> bool:
        """Whether the fact is about this site."""
        return site.name == self.site

    def broken(self, model: Model, structure: Structure) -> str | None:
        """What is wrong now, or None."""
        pattern = parse_pattern(self.pattern)
        for site in structure.sites:
            if self.concerns(site):
                values = site.read()
                wrong = pattern.violations(values)
                if wrong:
                    return f"{wrong} groups of {site.name} break {self.pattern}"
                if site.quantised == "qdq" and pattern.violations(codes_of(site)):
                    return f"the integer codes of {site.name} break {self.pattern}"
                return None
        return f"the weight {self.site} is gone"


@dataclass(frozen=True)
class ExplicitQuantisation:
    """Every Q/DQ pair of the model is where our rules want one, and one that TensorRT takes.

    Attributes:
        tensorrt: as it says; False for forms that are written for research (`invariants.RESEARCH`).
    """

    tensorrt: bool = True

    @property
    def text(self) -> str:
        """The fact as a sentence."""
        if not self.tensorrt:
            return "all Q/DQ pairs are symmetric and positive; TensorRT's rules for 4 bits were not asked"
        return "all Q/DQ pairs are symmetric, positive and legal for TensorRT"

    def broken(self, model: Model, structure: Structure) -> str | None:
        """What is wrong now, or None."""
        return next(iter(invariants.violations(model, invariants.QUANTISATION + placement.WRITTEN)), None)


@dataclass(frozen=True)
class HalfPrecision:
    """No weight and no scale is wider than what reads it: FP16 products have FP16 operands."""

    @property
    def text(self) -> str:
        """The fact as a sentence."""
        return "weights and scales of FP16 operators are FP16"

    def broken(self, model: Model, structure: Structure) -> str | None:
        """What is wrong now, or None."""
        for site in structure.sites:
            for reader in site.readers:
                found = [structure.types.get(tensor.name) for tensor in (*reader.inputs[:2], reader.outputs[0])]
                if np.dtype(np.float16) in found and len(set(found)) > 1:
                    names = ", ".join("?" if kind is None else kind.name for kind in found)
                    return f"{reader.op} {reader.name!r} mixes {names}"
        return None


_Known = SparseWeight | ExplicitQuantisation | HalfPrecision
_KINDS: Mapping[str, type[_Known]] = MappingProxyType(
    {"sparse weight": SparseWeight, "explicit quantisation": ExplicitQuantisation, "half precision": HalfPrecision}
)


def dumps(facts: Sequence[Fact]) -> str:
    """The facts as JSON; those of plug-ins are left out."""
    names = {kind: name for name, kind in _KINDS.items()}
    known = [fact for fact in facts if isinstance(fact, _Known)]
    return json.dumps([{"fact": names[type(fact)], **asdict(fact)} for fact in known])


def loads(text: str) -> list[Fact]:
    """The facts that `dumps` wrote. Raises UnsupportedModelError for any other text."""
    try:
        return [_KINDS[entry.pop("fact")](**entry) for entry in parse_json(text)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsupportedModelError(
            "the facts in the model's metadata cannot be read",
            found=f"{type(error).__name__}: {error}",
            hint="take the reproducer's model.onnx as it was written",
        ) from error


def renamed(facts: Sequence[Fact], names: Mapping[str, Sequence[str]]) -> list[Fact]:
    """The facts after sites got the new `names`, by the old one."""
    return [
        replace(fact, site=name) if isinstance(fact, SparseWeight) else fact
        for fact in facts
        for name in (names.get(fact.site, [fact.site]) if isinstance(fact, SparseWeight) else [""])
    ]


def pattern_of(site: Site, facts: Sequence[Fact]) -> Pattern | None:
    """The pattern that a site follows along k: by an earlier pass of the pipeline, or by its values; None: dense.

    Of several that its values follow, the one that leaves least.
    """
    for fact in facts:
        if isinstance(fact, SparseWeight) and fact.concerns(site):
            return parse_pattern(fact.pattern)
    return next(iter(site.patterns), None)
