"""The divergence against formulas written out, for each kind of output."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from gpusq_onnx.tuning.divergence import Divergence
from gpusq_onnx.tuning.estimate import rank_correlation

RNG = np.random.default_rng(0)


def kl(a: np.ndarray, b: np.ndarray, axis: int = -1) -> float:
    return float((softmax(a, axis) * (log_softmax(a, axis) - log_softmax(b, axis))).sum(axis).mean())


@pytest.mark.parametrize(("shape", "axis"), [((5, 7), 1), ((2, 4, 3, 3), 1)])
def test_class_scores_over_batches(shape: tuple[int, ...], axis: int):
    a, b = RNG.normal(size=(2, *shape)).astype(np.float32)
    found = Divergence()
    for half in (slice(0, 1), slice(1, None)):
        found.update({"y": a[half]}, {"y": b[half]})
    assert found.result() == pytest.approx(kl(a, b, axis), rel=1e-5)
    assert "classes" in found.measure


def test_probabilities_are_taken_as_they_are():
    a, b = softmax(RNG.normal(size=(2, 4, 6)), -1).astype(np.float32)
    found = Divergence()
    found.update({"y": a}, {"y": b})
    assert found.result() == pytest.approx(float((a * np.log(a / b)).sum(-1).mean()), rel=1e-4)


def test_a_detector_with_one_sigmoid_a_class():
    boxes = RNG.normal(size=(2, 8, 4)).astype(np.float32)
    a, b = (RNG.normal(size=(2, 2, 8, 5)) - 6).astype(np.float32)
    found = Divergence()
    found.update({"scores": a, "boxes": boxes}, {"scores": b, "boxes": boxes})
    p, q = (1 / (1 + np.exp(-x.astype(np.float64))) for x in (a, b))
    wanted = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1).mean()
    assert found.result() == pytest.approx(wanted, rel=1e-4)
    assert "yes or no" in found.measure


def test_a_feature_map_is_compared_by_its_values_and_infinity_is_infinite():
    a, b = RNG.normal(size=(2, 2, 3, 9)).astype(np.float32)
    found = Divergence()
    found.update({"y": a}, {"y": b})
    assert found.result() == pytest.approx(float(np.square(a - b).sum() / np.square(a).sum()), rel=1e-5)
    found.update({"y": a}, {"y": np.full_like(b, np.inf)})
    assert found.result() == np.inf


def test_the_scores_of_a_selection_are_compared_in_order_of_size():
    scores, boxes = RNG.uniform(size=(2, 8)).astype(np.float32), RNG.normal(size=(2, 8, 4)).astype(np.float32)
    found = Divergence()
    found.update({"scores": scores, "boxes": boxes}, {"scores": scores[:, ::-1], "boxes": boxes[:, ::-1]})
    assert found.result() == 0 and "sorted scores" in found.measure


def test_ranks_of_equal_values_are_their_mean():
    assert rank_correlation([1, 1, 2], [5, 5, 9]) == 1
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == -1
    assert rank_correlation([1, 1], [1, 2]) is None
