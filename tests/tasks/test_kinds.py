"""Kinds of outputs: the zoo's shapes, and the two ways a detector's classes are normalised."""

import numpy as np
import pytest

from gpusq_onnx.tasks.kinds import output_kinds, per_class

IMAGE = (1, 3, 512, 640)


@pytest.mark.parametrize(
    ("shapes", "kinds"),
    [
        ({"logits": ("batch", 1000)}, {"logits": "logits"}),
        ({"age": ("batch", 1)}, {"age": "raw"}),
        (
            {"logits": (1, 100, 92), "pred_boxes": (1, 100, 4), "memory": (1, 850, 256)},
            {"logits": "queries", "pred_boxes": "boxes", "memory": "raw"},
        ),
        # DETR with outlines: as large as the image or not, they are no classes of its pixels.
        (
            {"logits": (1, 100, 92), "pred_boxes": (1, 100, 4), "pred_masks": (1, 100, 128, 160), "c2": (1, 64, 9, 9)},
            {"logits": "queries", "pred_boxes": "boxes", "pred_masks": "masks", "c2": "raw"},
        ),
        (
            {"logits": (1, 100, 92), "boxes": (1, 100, 4), "masks": (1, 100, 512, 640), "map": (1, 150, 512, 640)},
            {"logits": "queries", "boxes": "boxes", "masks": "masks", "map": "pixels"},
        ),
        ({"logits": (1, 150, 512, 640), "aux": (1, 256, 32, 40)}, {"logits": "pixels", "aux": "raw"}),
        ({"logits": (1, 150, 128, 160)}, {"logits": "pixels"}),
        ({"p2": (1, 256, 128, 160), "p3": (1, 256, 64, 80)}, {"p2": "raw", "p3": "raw"}),
        ({"last_hidden_state": (1, 197, 192)}, {"last_hidden_state": "raw"}),
        ({"depth": (1, 1, 512, 640)}, {"depth": "raw"}),
        # As the zoo's Deformable DETR leaves its exporter: one number of queries, two names.
        (
            {"out0": ("batch", "Gatherout0_dim_1", 2), "out1": ("batch", "Gatherout1_dim_1", 4)},
            {"out0": "queries", "out1": "boxes"},
        ),
        # Behind a detector's selection: the best boxes and their scores.
        ({"boxes": ("N", "q", 4), "scores": ("N", "q")}, {"boxes": "boxes", "scores": "raw"}),
    ],
)
def test_kinds_by_shape(shapes, kinds):
    assert output_kinds(shapes, IMAGE) == kinds


def test_sigmoid_and_softmax_detectors_are_told_apart():
    rng = np.random.default_rng(0)
    focal = rng.normal(-4.6, 1, (2, 50, 91))
    focal[:, :3, 7] = 2.0
    background = rng.normal(-2, 1, (2, 50, 92))
    background[..., -1] = 8.0
    assert per_class(focal) and not per_class(background)
    logarithms = background - np.log(np.exp(background).sum(-1, keepdims=True))
    assert not per_class(logarithms - 1e-9), "all negative, and of one softmax"
