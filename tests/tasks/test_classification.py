import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpusq_onnx.errors import UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.tasks.classification import Classification, agreement, cosine, label_ranks

LOGITS = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(-3, 3).map(float))


@given(LOGITS, st.randoms(use_true_random=False))
def test_rank_is_the_place_in_a_stable_descending_sort(logits: np.ndarray, random: np.random.Generator) -> None:
    labels = np.array([random.randrange(logits.shape[1]) for _ in logits])  # type: ignore[attr-defined]
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert label_ranks(logits, labels).tolist() == expected
    assert ((label_ranks(logits, labels) == 0) == (logits.argmax(axis=1) == labels)).all()


def test_counts_add_up_over_batches() -> None:
    metric = Classification()
    logits = np.tile(np.arange(10, 0, -1, dtype=np.float16), (4, 1))
    metric.update(logits, np.array([0, 4, 5, 9]))
    metric.update(logits[:1], np.array([0]))
    assert metric.result() == {"top1": 0.4, "top5": 0.6, "n": 5}


def test_nan_is_never_right() -> None:
    logits = np.array([[np.nan, 1.0], [0.0, np.nan], [np.nan, np.nan], [1.0, 0.0]])
    metric = Classification()
    metric.update(logits, np.zeros(4, np.int64))
    assert metric.result()["top1"] == 0.25
    assert agreement(logits, logits) == 1


def test_no_rows_is_no_accuracy() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Classification().result()


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes(label: int) -> None:
    with pytest.raises(UnsupportedDataError, match=f"label {label}"):
        label_ranks(np.zeros((2, 3)), np.array([0, label]))


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 5), (2,)])
def test_outputs_that_are_no_logits(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedModelError, match="class logits"):
        label_ranks(np.zeros(shape), np.array([0, 1]))


def test_agreement_counts_equal_argmax() -> None:
    a = np.array([[1, 2, 3], [3, 2, 1], [0, 1, 0]], np.float32)
    b = np.array([[0, 0, 9], [0, 9, 0], [0, 5, 4]], np.float32)
    assert agreement(a, b) == 2


def test_cosine_by_hand() -> None:
    a = np.array([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    b = np.array([[[0.0, 2.0]], [[-2.0, -2.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
    np.testing.assert_allclose(cosine(a, b), [0.0, -1.0, 1.0, 0.0], atol=1e-12)


def test_cosine_of_half_precision_does_not_overflow() -> None:
    a = np.full((1, 1000), 6e4, np.float16)
    np.testing.assert_allclose(cosine(a, a), 1.0)
