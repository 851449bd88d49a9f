"""What a layer's weight should be, before it is pruned, when the part before it has been pruned already.

A pruned part gives inputs X_p where the dense model's are X_d, and a residual stream R_p, to which the layer's output
is added, where it is R_d. On these inputs the best weight is no longer W. The one that brings the outputs nearest to
the dense model's, by least squares:

    E  = (X_d - X_p) W^T + (R_d - R_p)          what is missing of the outputs; the second term where there is a stream
    W' = W + ((H + r I)^-1 X_p^T E)^T           H = X_p^T X_p, r = RIDGE * mean(diag H)

The ridge keeps W' from following the noise of few images. With a bias of its own, the layer's mean is the bias's
matter: H and X_p^T E are then taken over X_p and E less their means, and the bias absorbs the mean of E.

Source: asymmetric calibration as in GPTAQ (arXiv 2504.02692) and QEP (arXiv 2504.09629), for pruning; the residual
term is ours. Limits: X_d and X_p must be of the same rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.sparsity.gram import Each, Gram, one_by_one, spans
from gpusq_onnx.sparsity.sweep import inverse_factor, ridged

RIDGE = 0.3  # of the mean of the diagonal of H
_CHANNELS = 64  # that are worked through together


class WeightTarget:
    """The sums that W' is made of, streamed.

    Args:
        w: [out, k], the dense weight.
        gram: of X_p; rows are added to it apart from this.
        each: how the groups of output channels are worked through.
    """

    def __init__(self, w: NDArray[Any], gram: Gram, each: Each = one_by_one) -> None:
        self._w = w.astype(np.float32)
        self._gram, self._each = gram, each
        self._products = np.zeros((gram.k, len(w)))  # X_p^T E
        self._sum = np.zeros(len(w))  # of E

    def add(
        self,
        x: NDArray[np.floating[Any]],
        ahead: NDArray[np.floating[Any]],
        joined: NDArray[np.floating[Any]] | None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Add rows.

        Args:
            x: [rows, k], X_p.
            ahead: [rows, k], X_d - X_p.
            joined: [rows, out], R_d - R_p; None: the output joins no stream.
            weights: [rows], what each counts for; None: 1.
        """
        x, ahead = x.astype(np.float32, copy=False), ahead.astype(np.float32, copy=False)

        def add_channels(channels: slice) -> None:
            missing = ahead @ self._w[channels].T
            if joined is not None:
                missing += joined[:, channels]
            if weights is not None:
                missing *= weights[:, None]
            self._products[:, channels] += x.T @ missing
            self._sum[channels] += missing.sum(axis=0, dtype=np.float64)

        self._each(add_channels, spans(len(self._w), _CHANNELS))

    @property
    def mean(self) -> NDArray[np.float32]:
        """The mean of E, float32 [out]; zeros when nothing was added."""
        return (self._sum / max(1.0, self._gram.rows)).astype(np.float32)

    def weight(self, *, centred: bool) -> NDArray[np.float32]:
        """W', float32 [out, k].

        Args:
            centred: the layer's bias will absorb `mean`.

        Raises:
            numpy.linalg.LinAlgError: the sums are not finite.
        """
        gram = self._gram
        products = self._products - np.outer(gram.total / max(1.0, gram.rows), self._sum) if centred else self._products
        if not np.isfinite(products).all():
            raise np.linalg.LinAlgError("infinities")
        upper = inverse_factor(ridged(gram.sums(centred=centred), RIDGE, gram.rounding if centred else 0.0), self._each)
        moved = np.empty_like(self._w)

        def solve(channels: slice) -> None:
            moved[channels] = self._w[channels] + (upper.T @ (upper @ products[:, channels])).T

        self._each(solve, spans(len(self._w), _CHANNELS))
        return moved
