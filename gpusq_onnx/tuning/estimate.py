"""What a form of a group would cost, without running the changed model: the error of its own output times a gain.

    error(group, form)   var(y - y') / var(y),  y = x W^T, y' = q(x) W'^T, over rows x of the dense model's activations
                         (biases absorb the mean). W' is what `prune24` makes of the whole model, rounded as `qdq`
                         rounds; q(x) rounds at a calibrated scale
    gain(role, depth)    measured cost / error of groups that were measured, interpolated in its logarithm over the
                         depth within a role, for pruned forms and others apart; of both where only one was measured,
                         of all roles where none of this one was

What is estimated too low is what a search takes first, so half of the measurements go to the pruned forms of least
estimate (`doubtful`), after the other half was spread evenly.

An attention core has error 1: its cost is interpolated between measured ones.

How well estimates rank is said by leaving each measured pair out in turn and comparing its estimate (Spearman's rank
correlation). Limits: convolutions have error 1, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.calibration.activations import Calibration
from gpusq_onnx.data.source import Source
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.base import Context
from gpusq_onnx.pipeline.parallel import one_blas_thread
from gpusq_onnx.progress import Progress
from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.formats import Format, fake_quantize
from gpusq_onnx.quant.observers import make_observer
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.report.tuning import Group
from gpusq_onnx.tuning.groups import PRUNE, Groups
from gpusq_onnx.tuning.subject import Subject
from gpusq_onnx.tuning.treatments import DENSE, TREATMENTS, Treatment

ROWS = 256  # of each activation, spread over the images
LEAST = 1e-9  # of an error or a cost whose logarithm is taken

Pair = tuple[Group, str]
Float64 = NDArray[np.float64]


def spread(pairs: Sequence[Pair], count: int) -> list[int]:
    """About `count` pairs: one of each role, pruned and not, at least, the rest evenly over these and the depths."""
    alike: dict[tuple[str, bool], list[int]] = {}
    for index, pair in enumerate(pairs):
        alike.setdefault(_kind(pair), []).append(index)
    middle = {indices[len(indices) // 2] for indices in alike.values()}
    rest = [index for indices in alike.values() for index in indices if index not in middle]
    more = min(len(rest), max(0, count - len(middle)))
    return sorted(middle | {rest[(2 * number + 1) * len(rest) // (2 * more)] for number in range(more)})


def errors(
    subject: Subject, groups: Groups, calibration: Source, held: Source, progress: Progress
) -> dict[tuple[str, str], float]:
    """The error of each group in each form, by names: pruned with `calibration`, measured on `held`."""
    wanted = [group for group in groups.groups if group.attention is None]
    sites = {site.name: site for site in subject.structure.sites}
    pruned = _pruned(subject, groups, calibration) if PRUNE in groups.rows else {}
    rows = _rows(subject, [sites[group.sites[0]] for group in wanted], held, progress)
    found: dict[tuple[str, str], float] = {}
    for group in groups.groups:
        forms = [form for form in group.operations if form != DENSE]
        found |= dict.fromkeys(((group.name, form) for form in forms), 1.0)
        x = rows.get(sites[group.sites[0]].activation.name) if group.sites else None
        if x is None:
            continue
        rounded = cache(partial(_rounded, x))
        for form in forms:
            seen = rounded(_data(TREATMENTS[form]))
            with one_blas_thread():
                parts = [_error(sites[name], pruned.get(name), x, seen, TREATMENTS[form]) for name in group.sites]
            found[group.name, form] = float(np.mean(parts))
    return found


def fill(pairs: Sequence[Pair], error: Mapping[tuple[str, str], float], found: Mapping[int, float]) -> dict[int, float]:
    """An estimate for every pair, from those that were `found`, by index."""
    return {index: _guess(index, pairs, error, found) for index in range(len(pairs))}


def left_out(
    pairs: Sequence[Pair], error: Mapping[tuple[str, str], float], found: Mapping[int, float], sample: Sequence[int]
) -> float | None:
    """The rank correlation of a sample of what was `found` with its estimates, each left out in turn."""
    if len(sample) < 3:
        return None
    alone = [_guess(i, pairs, error, {k: v for k, v in found.items() if k != i}) for i in sample]
    return rank_correlation([found[i] for i in sample], alone)


def doubtful(pairs: Sequence[Pair], guesses: Mapping[int, float], found: Mapping[int, float], count: int) -> list[int]:
    """The `count` pairs to measure next, fewer where fewer are left: what a search takes first.

    Those are the least estimates for the group's operations, of pruned and quantised forms before the others.
    """
    waiting = [index for index in range(len(pairs)) if index not in found]

    def key(index: int) -> tuple[bool, bool, float]:
        group, form = pairs[index]
        row = TREATMENTS[form]
        return row.pattern is None, row.scheme is None, guesses[index] / max(1.0, group.operations[DENSE])

    return sorted(waiting, key=key)[:count]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, equal values at their mean rank; None where one side has one value only.

    >>> rank_correlation([1, 2, 3], [10, 20, 25])
    1.0
    """
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    if any(np.ptp(r) == 0 for r in ranks):
        return None
    return round(float(np.corrcoef(ranks[0], ranks[1])[0, 1]), 6)


def _ranks(values: Float64) -> Float64:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Float64 = (ends - (counts - 1) / 2)[inverse]
    return means


def _guess(
    index: int, pairs: Sequence[Pair], error: Mapping[tuple[str, str], float], found: Mapping[int, float]
) -> float:
    group, form = pairs[index]
    role = [i for i in found if pairs[i][0].role == group.role]
    alike = [i for i in role if _kind(pairs[i]) == _kind(pairs[index])] or role or list(found)
    depths = sorted({pairs[i][0].depth for i in alike})
    gains = [np.mean([_gain(pairs[i], error, found[i]) for i in alike if pairs[i][0].depth == d]) for d in depths]
    gain = float(np.interp(group.depth, depths, gains))
    return float(np.exp(gain) * max(LEAST, error[group.name, form]))


def _kind(pair: Pair) -> tuple[str, bool]:
    """What gains are interpolated within: the role, and whether the form is pruned."""
    return pair[0].role, TREATMENTS[pair[1]].pattern is not None


def _gain(pair: Pair, error: Mapping[tuple[str, str], float], cost: float) -> float:
    return float(np.log(max(LEAST, cost)) - np.log(max(LEAST, error[pair[0].name, pair[1]])))


def _pruned(subject: Subject, groups: Groups, source: Source) -> dict[str, NDArray[Any]]:
    """The weights that `prune24` makes of the whole model, by site."""
    made = subject.model.clone()
    structure = analyse(made)
    step = table.one(PRUNE)
    rows = [row for row in groups.rows[PRUNE] if not row.skipped]
    with one_blas_thread():
        step.apply(made, structure, rows, Context(source, subject.options.seed))
    changed = {row.tensor for row in rows}
    return {site.name: site.read() for site in structure.sites if site.name in changed}


def _rows(subject: Subject, sites: Sequence[Site], source: Source, progress: Progress) -> dict[str, NDArray[Any]]:
    """About `ROWS` rows x[rows, k] of each site's activation in the dense model."""
    each = max(1, -(-ROWS // len(source)))
    parts: dict[str, list[NDArray[Any]]] = {site.activation.name: [] for site in sites if site.is_linear}
    if not parts:
        return {}

    def visit(found: Mapping[str, NDArray[Any]], images: int) -> None:
        for name, x in found.items():
            flat = x.reshape(-1, x.shape[-1])
            count = min(len(flat), each * images)
            parts[name].append(flat[[index * len(flat) // count for index in range(count)]].astype(np.float32))

    with Calibration(subject.model, list(parts), subject.structure.shapes, source, progress) as calibration:
        calibration.run(visit, "looking at activations")
    return {name: np.concatenate(found) for name, found in parts.items()}


def _data(treatment: Treatment) -> Format | None:
    """What a layer's input is rounded to."""
    return None if treatment.scheme is None else treatment.scheme.input


def _rounded(x: NDArray[Any], fmt: Format | None) -> NDArray[Any]:
    """Rows x[rows, k] at a calibrated scale, each row a sample; None: as they are."""
    if fmt is None:
        return x
    observer = make_observer("auto", fmt=fmt)
    observer.update(x, len(x))
    return fake_quantize(x, observer.scale(fmt), fmt)


def _error(site: Site, pruned: NDArray[Any] | None, x: NDArray[Any], seen: NDArray[Any], treatment: Treatment) -> float:
    w = site.read().astype(np.float32)
    made = w if treatment.pattern is None or pruned is None else pruned.astype(np.float32)
    if treatment.scheme is not None:
        fmt = treatment.scheme.weight
        made = fake_quantize(made, Scales(weight_scales(made, fmt), 0), fmt)
    y = x @ w.T
    return float((y - seen @ made.T).var(axis=0).mean() / max(LEAST, float(y.var(axis=0).mean())))
