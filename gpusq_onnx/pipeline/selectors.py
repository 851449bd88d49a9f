"""Which sites a pass treats: by name pattern, module path, operator and role, with the reason for every refusal.

`only` and `skip` are lists of patterns. A pattern is a role (`fc1`), an operator (`Conv`), or a shell-style wildcard
that is matched against the initializer's name and the module path (`blocks.0.*`). Roles and operators are matched
whatever the case; where two differ in nothing else, as written: `conv` is the role, `Conv` the operator. A pattern that
matches no site of the model is an error, so that a typo never means "everything". First layers and heads, which are
left alone by default, have options of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from glob import escape
from typing import Annotated, Protocol

from pydantic import AfterValidator, Field

from gpusq_onnx.errors import SelectorUnmatched, UnsupportedModelError, UsageError
from gpusq_onnx.graph.exclusions import Kind, excluded
from gpusq_onnx.graph.roles import FIRST_LAYERS, ROLES
from gpusq_onnx.graph.sites import OPERATORS, Site
from gpusq_onnx.pipeline.base import PassOptions
from gpusq_onnx.sparsity.patterns import parse_pattern


class Selecting(Protocol):
    """Options that say which weights a pass changes."""

    only: list[str]
    smallest: int

    def includes(self, site: Site) -> bool:
        """Whether an option asks for this site."""


class Selector:
    """The sites that `only` names (all, where it is empty) without those that `skip` names."""

    def __init__(self, only: Sequence[str], skip: Sequence[str]) -> None:
        self.only, self.skip = tuple(only), tuple(skip)

    def check(self, sites: Sequence[Site], where: str) -> None:
        """Raise SelectorUnmatched for the first pattern without a match; `where` names the pass."""
        require_matches(self.only, sites, f"{where}.only")
        require_matches(self.skip, sites, f"{where}.skip")

    def refuses(self, site: Site) -> str | None:
        """Why the site is left out, or None."""
        if self.only and not any(matches(pattern, site) for pattern in self.only):
            return f"not selected by only={';'.join(self.only)}"
        hit = next((pattern for pattern in self.skip if matches(pattern, site)), None)
        return f"left out by skip={hit}" if hit is not None else None


def exclusion(site: Site, options: Selecting, kind: Kind) -> str | None:
    """Why nobody would change the site, or None; most reasons do not hold for one that the options ask for.

    Args:
        kind: what the pass does, for which `graph.exclusions` has its reasons.
    """
    named = bool(options.only) or options.includes(site)
    return excluded(site, kind, smallest=options.smallest, named=named)


def require_matches(patterns: Sequence[str], sites: Sequence[Site], where: str) -> None:
    """Raise SelectorUnmatched for the first pattern without a match; `where` names the pass and the option."""
    for pattern in patterns:
        if not any(matches(pattern, site) for site in sites):
            names = sorted({site.path or site.name for site in sites})
            raise SelectorUnmatched(
                f"the selector {pattern!r} matches no weight",
                where=where,
                expected=f"a role ({', '.join(sorted({s.role for s in sites}))}), an operator "
                f"({', '.join(OPERATORS)}), or a pattern for names such as {', '.join(names[:3])}",
                hint="gpusq-onnx inspect --full MODEL lists every weight with its name, path and role",
            )


def matches(pattern: str, site: Site) -> bool:
    """Whether one pattern names the site."""
    known = _known(pattern)
    if known is not None:
        return site.role == known if known in ROLES else site.op == known
    return fnmatchcase(site.name, pattern) or (bool(site.path) and fnmatchcase(site.path, pattern))


def exactly(site: Site) -> str:
    """The pattern that names this site's initializer and is the name of no role or operator."""
    name = site.name
    return f"[{name[0]}]{escape(name[1:])}" if _known(name) else escape(name)


def _known(pattern: str) -> str | None:
    """The role or operator that a pattern is the name of."""
    names = (*ROLES, *OPERATORS)
    if pattern in names:
        return pattern
    return next((name for name in names if name.casefold() == pattern.casefold()), None)


def require_unquantised(sites: Sequence[Site], why: str, hint: str) -> None:
    """Raise UnsupportedModelError where weights have scales already; `why` a pass cannot change these weights."""
    quantised = [site for site in sites if site.quantised]
    if quantised:
        raise UnsupportedModelError(
            f"{len(quantised)} weights are quantised already; {why}",
            where=quantised[0].path or quantised[0].name,
            hint=hint,
        )


def _pattern_name(value: str) -> str:
    try:
        return parse_pattern(value).name
    except UsageError as error:
        raise ValueError(str(error)) from None


PatternName = Annotated[str, AfterValidator(_pattern_name)]
"""An option that names a sparse pattern, in the form that patterns call themselves."""


class EndsOptions(PassOptions):
    """Options of every pass that prunes or quantises."""

    patch: bool = Field(default=False, description="include first layers, as the paper does (see patch-matmul)")
    head: bool = Field(default=False, description="include heads, as the paper does")

    def includes(self, site: Site) -> bool:
        """Whether an option asks for this site."""
        return (self.patch and site.role in FIRST_LAYERS) or (self.head and site.role == "head")
