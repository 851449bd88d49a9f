"""Zero patterns that training must not touch: read from the graph, kept after every step, verified.

A weight's mask is the places that are not zero before training, within the part of the stored array that the site
sees. Rounding to a grid makes zeros, too, which are free to move: of a rounded weight, the mask is that of the sparse
float model. Where that is not known, each group along k is filled up to as many places as its pattern keeps: those
that are not zero, then the first of the others, since nothing in the file tells a rounded weight from a pruned one.

Gradients under a mask are cleared before clipping, so that they neither count in the norm nor gather
momentum; after each optimiser step the zeros are written again; `verify` counts what is there.

Source: docs/method.md, "Which weights go" (fixed mask, re-applied after every step). Limits: a kept weight of a float
model that is exactly zero by chance stays zero, and so does a weight that is zero as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gpusq_onnx.errors import InvariantError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import Site, find_sites
from gpusq_onnx.sparsity.patterns import Pattern

Kept = NDArray[np.bool_]


def patterns(sites: Iterable[Site]) -> dict[str, Kept]:
    """What stays of each site's weight, by initializer, in its stored shape; True where a value may be."""
    return _stored((site, site.read() != 0) for site in sites)


def rounded_patterns(sites: Iterable[tuple[Site, Pattern]], sparse: Model | None) -> dict[str, Kept]:
    """The same of weights that were rounded to a grid.

    Args:
        sites: with the pattern that each follows.
        sparse: the float model that was rounded, where it is known.
    """
    floats = {} if sparse is None else {site.name: site for site in find_sites(sparse)}
    return _stored((site, _may_be(site, pattern, floats.get(site.name))) for site, pattern in sites)


def _may_be(site: Site, pattern: Pattern, before: Site | None) -> Kept:
    """kept[out, k] of a rounded weight."""
    values: Kept = site.read() != 0
    if before is not None and (before.out, before.k) == (site.out, site.k):
        kept: Kept = before.read() != 0
        if not (values & ~kept).any() and pattern.holds(kept):
            return kept
    return pattern.mask(values.astype(np.float32)) if values.any() else values


def _stored(sites: Iterable[tuple[Site, Kept]]) -> dict[str, Kept]:
    kept: dict[str, Kept] = {}
    for site, seen in sites:
        name = str(site.weight.name)
        stored = kept.get(name)
        if stored is None:
            stored = np.ones(tuple(site.weight.shape), np.bool_)
        kept[name] = site.view.write(site.view.read(stored) & seen, stored)
    return kept


class Masks:
    """The zeros of a network's parameters.

    Args:
        network: a module whose parameters have the initializers' shapes.
        initializers: the initializer of each parameter.
        kept: by initializer, as `patterns` gives it; those that are not trained are left out.
    """

    def __init__(self, network: nn.Module, initializers: Mapping[str, str], kept: Mapping[str, Kept]) -> None:
        self._zeros: dict[str, tuple[nn.Parameter, torch.Tensor]] = {}
        self.checks = 0
        for name, parameter in network.named_parameters():
            mask = kept.get(initializers[name])
            if mask is not None:
                zeros = torch.from_numpy(~mask).to(parameter.device)
                assert zeros.shape == parameter.shape, (name, zeros.shape, parameter.shape)
                self._zeros[initializers[name]] = parameter, zeros

    def __len__(self) -> int:
        return len(self._zeros)

    def clear_gradients(self) -> None:
        """No gradient where a weight must stay zero."""
        for parameter, zeros in self._zeros.values():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(zeros, 0)

    @torch.no_grad()
    def apply(self) -> None:
        """Write the zeros again."""
        for parameter, zeros in self._zeros.values():
            parameter.masked_fill_(zeros, 0)

    @torch.no_grad()
    def verify(self, where: str) -> None:
        """Raise InvariantError where a pruned weight is not zero; `where` says when this was looked at."""
        self.checks += 1
        for initializer, (parameter, zeros) in self._zeros.items():
            wrong = int(((parameter != 0) & zeros).sum())
            if wrong:
                raise InvariantError(
                    f"training moved pruned weights of {initializer!r} away from zero",
                    where=where,
                    expected="zeros wherever the weight was pruned",
                    found=f"{wrong} of {int(zeros.sum())} are not zero",
                    hint="this is a defect of the training loop; the checkpoint beside the output shows it",
                )
