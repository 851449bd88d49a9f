"""In which order channels that may change places share the groups of a pattern: decided cohort by cohort.

A cohort's columns of w[out, k] must be whole groups of the pattern wherever a weight reads them; the energies of all
weights that are given together count together (`sparsity.permutation`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.graph.channels import Ints, sources
from gpusq_onnx.graph.moves import Movable
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.parallel import share
from gpusq_onnx.sparsity.patterns import Pattern
from gpusq_onnx.sparsity.permutation import arrange, kept


class ChannelOrder:
    """Where each channel of a graph comes to lie.

    Attributes:
        moved: by place, the channel that comes to it; for `Movable.move`.
        kept: by site, the shares of energy that the pattern keeps before and after, a pair a cohort.
    """

    def __init__(self, movable: Movable, pattern: Pattern) -> None:
        self._movable, self._pattern = movable, pattern
        self._open = list(movable.cohorts)
        self.moved: Ints = np.arange(movable.count)
        self.kept: dict[str, list[list[float]]] = {}

    def decide(self, energies: Mapping[Site, NDArray[np.float32]]) -> None:
        """Order the input channels of these sites, but for those that were ordered before.

        Args:
            energies: what each weight counts for, as w[out, k]; see `sparsity.permutation`.
        """
        for cohort in list(self._open):
            places = {site: places_of(site, self._movable, cohort, self._pattern) for site in energies}
            found = {site: columns for site, columns in places.items() if columns is not None}
            if not found:
                continue
            self._open = [other for other in self._open if other is not cohort]
            energy = np.concatenate([_in_places(energies[site], columns, site) for site, columns in found.items()])
            order = arrange(energy, self._pattern, share)
            by_place = cohort[:, np.argsort(next(iter(found.values()))[0])]
            self.moved[by_place] = by_place[:, order]
            before, after = kept(energy, self._pattern), kept(energy, self._pattern, order)
            for site in found:
                self.kept.setdefault(site.name, []).append([before, after])

    def columns(self, site: Site) -> NDArray[np.intp] | None:
        """The order of the reduction axis of w[out, k] as decided so far; None: as it lies."""
        labels = self._movable.columns.get(site)
        if labels is None:
            return None
        order = sources(labels, self.moved)
        return np.arange(site.k).reshape(-1, site.channels)[:, order].ravel()


def places_of(site: Site, movable: Movable, cohort: Ints, pattern: Pattern) -> NDArray[np.intp] | None:
    """The input channels [copies, n] of a site that a cohort's n columns are; None: none, or no whole groups."""
    labels = movable.columns.get(site)
    if labels is None:
        return None
    copies = []
    for members in cohort:
        column = np.full(movable.count, -1)
        column[members] = np.arange(len(members))
        places = np.nonzero(column[labels] >= 0)[0]
        by_column = places[np.argsort(column[labels[places]], kind="stable")]
        copies += list(by_column.reshape(len(members), -1).T)
    if not copies or len(cohort[0]) % pattern.group:
        return None
    first = np.argsort(copies[0])
    for places in copies:
        groups = places[first].reshape(-1, pattern.group)
        if (groups % pattern.group != np.arange(pattern.group)).any() or (np.diff(groups, axis=1) != 1).any():
            return None
    return np.stack(copies)


def _in_places(energy: NDArray[np.float32], columns: NDArray[np.intp], site: Site) -> NDArray[np.float32]:
    """What each weight counts for, [rows, n], with channels in the order of their first copy's places."""
    by_channel = energy.reshape(-1, site.channels)
    order = np.argsort(columns[0])
    return np.concatenate([by_channel[:, places[order]] for places in columns])
