"""How sure a model is, of each kind of output."""

import numpy as np
import pytest

from gpusq_onnx.tasks.sureness import sureness

IMAGE = [(None, 3, 32, 32)]
EVEN = np.zeros((2, 5), np.float32)
SURE = np.array([[0, 99, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"logits": SURE}, [1, 0.2]),
        ({"likelihoods": np.full((2, 5), 0.2, np.float32)}, [0.2, 0.2]),
        ({"pixels": np.broadcast_to(SURE[:, :, None, None], (2, 5, 32, 32))}, [1, 0.2]),
        ({"logits": np.zeros((2, 7, 5), np.float32) - 99, "boxes": np.zeros((2, 7, 4), np.float32)}, [0, 0]),
        (
            {
                "labels": np.zeros((1, 20), np.int64),
                "boxes": np.zeros((1, 20, 4), np.float32),
                "scores": np.array([[0.5] * 10 + [0.0] * 10], np.float32),
            },
            [0.5],
        ),
    ],
    ids=["classes", "likelihoods", "pixels", "queries", "finished"],
)
def test_of_each_kind(outputs: dict[str, np.ndarray], expected: list[float]):
    found = sureness(outputs, IMAGE)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_features_say_nothing():
    assert sureness({"features": np.zeros((2, 16, 8), np.float32)}, IMAGE) is None
