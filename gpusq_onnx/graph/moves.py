"""Everything in a graph that has an element for each of some channels, and how it moves when these change places.

Found by `graph.movable`. Limits: weights and vectors are written anew, in their own type.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.channels import Ints, sources
from gpusq_onnx.graph.model import values_of
from gpusq_onnx.graph.sites import Site


@dataclass
class Movable:
    """What moves with which channel.

    Attributes:
        rows: by site, the channel of each row of w[out, k].
        columns: by site, the channel of each input channel.
        vectors: constants and the channel of each of their elements, in the order of their memory.
        cohorts: arrays [members, n]: the n columns of each may change places, the members of one together.
        fixed: by site, why its input channels stay.
        count: of all channels.
    """

    rows: dict[Site, Ints] = field(default_factory=dict)
    columns: dict[Site, Ints] = field(default_factory=dict)
    vectors: list[tuple[gs.Constant, Ints]] = field(default_factory=list)
    cohorts: list[Ints] = field(default_factory=list)
    fixed: dict[Site, str] = field(default_factory=dict)
    count: int = 0

    def writers(self, cohort: Ints) -> list[Site]:
        """The sites whose output channels these are, in graph order."""
        return [site for site, channels in self.rows.items() if np.isin(channels, cohort).any()]

    def move(self, moved: Ints) -> None:
        """Let channel moved[c] come to the place of c; cohorts move as wholes, within themselves."""
        changed = moved != np.arange(self.count)
        for site, channels in self.rows.items():
            if changed[channels].any():
                site.write(np.ascontiguousarray(site.read()[sources(channels, moved)]))
        for site, channels in self.columns.items():
            if changed[channels].any():
                w = site.read()
                by_channel = w.reshape(len(w), -1, len(channels))[:, :, sources(channels, moved)]
                site.write(np.ascontiguousarray(by_channel.reshape(w.shape)))
        for constant, channels in self.vectors:
            if changed[channels].any():
                values = values_of(constant)
                constant.values = values.ravel()[sources(channels, moved)].reshape(values.shape)
