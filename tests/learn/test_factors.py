"""Weight factors: every arm's formula on numbers worked out by hand."""

import pytest

from gpusq_onnx.learn.factors import weight_factors

D = [0.1, 0.2, 0.4]


def test_inverse_gives_small_weight_to_large_distance_and_keeps_the_mean() -> None:
    w = weight_factors(D, "inverse")
    assert w == pytest.approx([3 * 10 / 17.5, 3 * 5 / 17.5, 3 * 2.5 / 17.5], rel=1e-6)
    assert sum(w) == pytest.approx(3)


def test_raw_inverse_and_uniform_share_a_total() -> None:
    raw, uniform = weight_factors(D, "raw-inverse"), weight_factors(D, "uniform")
    assert raw == pytest.approx([10, 5, 2.5], rel=1e-6)
    assert uniform == pytest.approx([17.5 / 3] * 3, rel=1e-6)


def test_proportional_is_the_opposite_order() -> None:
    assert weight_factors(D, "proportional") == pytest.approx([3 / 7, 6 / 7, 12 / 7])


@pytest.mark.parametrize("seed", range(8))
def test_shuffled_has_the_same_values_and_none_in_its_place(seed: int) -> None:
    inverse, shuffled = weight_factors(D, "inverse"), weight_factors(D, "shuffled", seed)
    assert sorted(shuffled) == sorted(inverse)
    assert all(a != b for a, b in zip(inverse, shuffled, strict=True))
    assert weight_factors(D, "shuffled", seed) == shuffled


def test_none_and_a_model_that_was_not_pruned() -> None:
    assert weight_factors(D, "none") == [1, 1, 1]
    assert weight_factors([0, 0], "inverse") == [1, 1]
    assert weight_factors([], "inverse") == []


def test_one_untouched_map_does_not_take_all_by_infinity() -> None:
    assert sum(weight_factors([0.0, 0.1], "inverse")) == pytest.approx(2)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_distance_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        weight_factors([0.1, bad], "inverse")
