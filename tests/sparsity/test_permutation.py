"""The order of channels: a permutation, never worse than the order given, and what is best where that is known."""

from itertools import permutations

import numpy as np
import pytest

from gpusq_onnx.sparsity.patterns import PAIRS_48, TWO_FOUR, Pattern
from gpusq_onnx.sparsity.permutation import arrange, kept


def _energy(rows: int, k: int, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, k)) ** 2 * np.exp(rng.standard_normal(k))).astype(np.float32)


@pytest.mark.parametrize("pattern", [TWO_FOUR, PAIRS_48, Pattern(1, 4), Pattern(2, 8)], ids=lambda p: p.name)
@pytest.mark.parametrize(("rows", "k"), [(1, 16), (24, 64), (600, 32)])
def test_the_order_is_a_permutation_and_keeps_no_less(pattern: Pattern, rows: int, k: int) -> None:
    energy = _energy(rows, k)
    order = arrange(energy, pattern)
    assert sorted(order) == list(range(k))
    assert kept(energy, pattern, order) > kept(energy, pattern)


def test_eight_channels_come_near_the_best_of_all_orders() -> None:
    energy = _energy(12, 8, seed=3)
    orders = (np.array(order) for order in permutations(range(8)) if order[0] == 0)
    best = max(kept(energy, TWO_FOUR, order) for order in orders)
    assert kept(energy, TWO_FOUR, arrange(energy, TWO_FOUR)) >= best - 0.01


def test_channels_that_compete_are_separated() -> None:
    energy = np.zeros((1, 8), np.float32)
    energy[0, :4] = 1
    assert kept(energy, TWO_FOUR) == 0.5
    assert kept(energy, TWO_FOUR, arrange(energy, TWO_FOUR)) == 1


@pytest.mark.parametrize("energy", [np.ones((2, 6)), -np.ones((2, 8)), np.full((2, 8), np.nan)])
def test_what_cannot_be_ordered_is_refused(energy: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=r"needs|energies"):
        arrange(energy, TWO_FOUR)
