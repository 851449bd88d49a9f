"""What a configuration must meet: `METRIC>=NUMBER` or `METRIC<=NUMBER`, of the metrics in one table.

agreement     share of images (pixels) on which the best class is the dense model's; at least; 0 to 1
kl            mean divergence from the dense model's outputs (`divergence`); at most
top1-drop     top-1 lost, in percentage points; at most; needs labels
ap-drop, mask-ap-drop, miou-drop    the same of the other metrics; need annotations or masks
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline.grammar import did_you_mean
from gpusq_onnx.runtime.compare.outputs import Comparison
from gpusq_onnx.tasks.scored import SCORED

_TEXT = re.compile(r"\s*([A-Za-z0-9_-]+)\s*([<>]=?|=+)\s*([0-9.eE+-]+)\s*")
_SHARE = re.compile(r"\s*([0-9.]+)\s*%\s*")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMG]?)B\s*")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class BudgetMetric:
    """One row.

    Attributes:
        name: as budgets spell it.
        most: of a bound.
        truth: what the data must have: a key of `tasks.scored`; "" for none.
        needs: the same in words.
        least: whether a budget is a least value; else it is a greatest one.
    """

    name: str
    most: float
    truth: str = ""
    needs: str = ""
    least: bool = False


METRICS: Mapping[str, BudgetMetric] = MappingProxyType(
    {
        row.name: row
        for row in (
            BudgetMetric("agreement", 1.0, needs="a classifier or a segmenter with one output", least=True),
            BudgetMetric("kl", 1e9),
            *(BudgetMetric(f"{m.option}-drop", 100.0, m.key, f"{m.truth}: {m.given_by}") for m in SCORED.values()),
        )
    }
)


@dataclass(frozen=True)
class Budget:
    """A metric and its bound."""

    metric: BudgetMetric
    bound: float

    def __str__(self) -> str:
        return f"{self.metric.name}{'>=' if self.metric.least else '<='}{self.bound:g}"

    def met_by(self, values: Mapping[str, float]) -> bool:
        """Whether a configuration with these values, by metric, meets it."""
        value = values[self.metric.name]
        return value >= self.bound if self.metric.least else value <= self.bound


def parse_budget(text: str) -> Budget:
    """Read `agreement>=0.97`. Raises UsageError for an unknown metric, another direction or a bound out of range."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UsageError(f"the budget {text!r} cannot be read", where="--budget", expected="'agreement>=0.97', quoted")
    name, sign, number = match.groups()
    metric = METRICS.get(name)
    if metric is None:
        raise UsageError(
            f"there is no budget of {name!r}",
            where="--budget",
            expected=f"one of {', '.join(METRICS)}",
            hint=did_you_mean(name, METRICS),
        )
    wanted = ">=" if metric.least else "<="
    if sign != wanted:
        raise UsageError(
            f"a budget of {name} is written with {wanted}",
            where="--budget",
            found=sign,
            hint=f"'{name}{wanted}{number}'",
        )
    try:
        bound = float(number)
    except ValueError:
        bound = float("nan")
    if not 0 <= bound <= metric.most:
        expected = f"0 to {metric.most:g}" + (" percentage points" if name.endswith("drop") else "")
        raise UsageError(f"the bound of {name} is out of range", where="--budget", expected=expected, found=number)
    return Budget(metric, bound)


@dataclass(frozen=True)
class Limit:
    """The most that a configuration may cost.

    Attributes:
        amount: a share of what the dense model costs, or bytes.
        given: bytes as they were written; "" where the amount is a share.
    """

    amount: float
    given: str = ""

    def share(self, whole: float) -> float:
        """The share of `whole`, which the dense model costs; at most 1."""
        return min(1.0, self.amount / whole) if self.given else self.amount

    def said(self, whole: float) -> str:
        """In words."""
        return f"{self.given}, {self.share(whole):.4%}" if self.given else f"{self.share(whole):.4%}"


def parse_at_most(text: str) -> Limit:
    """Read `40%`. Raises UsageError for anything else, and for a share out of range."""
    return Limit(_share(text, "--at-most", "a percentage above 0% and up to 100%, such as 40%"))


def parse_packed_size(text: str) -> Limit:
    """Read `8MB` or `40%`. Raises UsageError for anything else, and for no bytes.

    >>> parse_packed_size("8MB").said(32e6), parse_packed_size("40%").said(32e6)
    ('8MB, 25.0000%', '40.0000%')
    """
    option, expected = "--packed-size", "a size above 0 such as 8MB, or a percentage of the dense one such as 40%"
    match = _SIZE.fullmatch(text)
    if match is None:
        return Limit(_share(text, option, expected))
    amount = float(match[1]) * _UNITS[match[2].upper()]
    if not amount:
        raise UsageError("the size is out of range", where=option, expected=expected, found=text)
    return Limit(amount, text)


def _share(text: str, option: str, expected: str) -> float:
    match = _SHARE.fullmatch(text)
    try:
        share = float(match[1]) / 100 if match else float("nan")
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1:
        raise UsageError(
            f"the share {'cannot be read' if match is None else 'is out of range'}",
            where=option,
            expected=expected,
            found=text,
        )
    return share


def values_of(found: Comparison, divergence: float) -> dict[str, float]:
    """A configuration's values, by the names of the metrics that this model and this data give."""
    values = {"kl": divergence}
    if found.top1_agreement is not None:
        values["agreement"] = found.top1_agreement
    before, after = found.reference_metrics or {}, found.candidate_metrics or {}
    for metric in METRICS.values():
        if metric.truth in before and metric.truth in after:
            # 0.84 - 0.83 is a little more than one point in binary
            values[metric.name] = round(100 * (before[metric.truth] - after[metric.truth]), 9)
    return values
