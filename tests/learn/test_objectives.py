"""The losses against the formulas of docs/method.md written out in numpy, the gate, and outputs that are no logits."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.learn.objectives import Labels, Objective, Pair  # noqa: E402
from gpusq_onnx.learn.readings import Reading  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402

B, C = 6, 5
LOGITS = Pair("logits", "logits")
MAPS = [Pair("f0", "g0"), Pair("f1", "g1")]


def _pair(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    teacher = {"logits": 3 * draw(B, C), "g0": draw(B, 7, 4), "g1": draw(B, 3, 2, 2)}
    student = {"logits": teacher["logits"] + 6 * draw(B, C), "f0": draw(B, 7, 4), "f1": draw(B, 3, 2, 2)}
    return student, teacher


def _objective(**settings: object) -> Objective:
    return Objective(TrainingOptions(**settings), [LOGITS], {"logits": "logits"}, MAPS, [2.0, 0.5])


def _softmax(z: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_total_is_the_sum_in_the_method() -> None:
    student, teacher = _pair()
    losses = _objective()(student, teacher)
    z_s, z_t = student["logits"].numpy().astype(np.float64), teacher["logits"].numpy().astype(np.float64)
    hard = -np.log(_softmax(z_s)[np.arange(B), z_t.argmax(1)]).mean()
    p, q = _softmax(z_t / 3), _softmax(z_s / 3)
    soft = (p * np.log(p / q)).sum(1).mean()
    agree = (z_s.argmax(1) == z_t.argmax(1)).astype(float)
    assert 0 < agree.sum() < B, "the toy must have both kinds of image"
    features = []
    for name in ("0", "1"):
        f, g = student[f"f{name}"].numpy().reshape(B, -1), teacher[f"g{name}"].numpy().reshape(B, -1)
        each = ((f - g) ** 2).mean(1) / ((g**2).mean(1) + 1e-6)
        features.append((agree * each).sum() / agree.sum())
    assert losses.parts["hard"].item() == pytest.approx(hard, rel=1e-5)
    assert losses.parts["soft"].item() == pytest.approx(soft, rel=1e-5)
    assert losses.parts["feature.0"].item() == pytest.approx(features[0], rel=1e-5)
    assert losses.parts["agree"].item() == pytest.approx(agree.mean())
    want = hard + 10 * soft + 5 * (2.0 * features[0] + 0.5 * features[1])
    assert losses.total.item() == pytest.approx(want, rel=1e-5)


def test_no_image_that_agrees_means_no_feature_loss_and_no_nan() -> None:
    student, teacher = _pair()
    student["logits"] = -teacher["logits"]
    losses = _objective()(student, teacher)
    assert losses.parts["feature.0"].item() == 0 and losses.parts["agree"].item() == 0
    assert torch.isfinite(losses.total)


def test_the_gate_can_be_opened_and_each_loss_switched_off() -> None:
    student, teacher = _pair()
    opened = _objective(gate=False)(student, teacher)
    each = ((student["f0"] - teacher["g0"]) ** 2).mean((1, 2)) / ((teacher["g0"] ** 2).mean((1, 2)) + 1e-6)
    assert opened.parts["feature.0"].item() == pytest.approx(each.mean().item(), rel=1e-5)
    plain = _objective(gate=False, feature_loss="plain")(student, teacher)
    assert plain.parts["feature.0"].item() == pytest.approx(((student["f0"] - teacher["g0"]) ** 2).mean().item())
    only_soft = _objective(alpha=0, gamma=0)(student, teacher)
    assert only_soft.total.item() == pytest.approx(10 * only_soft.parts["soft"].item())


def test_outputs_without_a_batch_in_common_make_one_gate() -> None:
    """CLIP's logits by image [3, 2], and by text [2, 3]: two of three agree, and none of two."""
    pairs = [Pair(name, name) for name in ("images", "texts")]
    objective = Objective(TrainingOptions(), pairs, {"images": "logits", "texts": "logits"}, [], [])
    teacher = {"images": torch.tensor([[1.0, 0], [1, 0], [1, 0]]), "texts": torch.tensor([[1.0, 0, 0], [1, 0, 0]])}
    student = {"images": torch.tensor([[1.0, 0], [1, 0], [0, 1]]), "texts": torch.tensor([[0, 1.0, 0], [0, 1, 0]])}
    agrees = objective.agreements(student, teacher)
    assert objective.gate(agrees, student).tolist() == pytest.approx([1 / 3])
    assert torch.isfinite(objective(student, teacher, images=1).total)


def test_what_lies_beyond_the_bound_counts_as_the_bound() -> None:
    """A few huge values are most of a map's energy: without a bound, all others are next to nothing beside them."""
    student, teacher = _pair()
    teacher["g0"][:, 0, 0], student["f0"][:, 0, 0] = 1e4, 2e4
    most = 2 * teacher["g0"].square().mean((1, 2), keepdim=True).sqrt()
    f_s, f_t = (torch.maximum(torch.minimum(f, most), -most) for f in (student["f0"], teacher["g0"]))
    each = (f_s - f_t).square().mean((1, 2)) / (f_t.square().mean((1, 2)) + 1e-6)
    found = _objective(gate=False, bound=2)(student, teacher).parts
    assert found["feature.0"].item() == pytest.approx(each.mean().item(), rel=1e-5)
    free = _objective(gate=False)(student, teacher).parts
    assert free["feature.0"].item() == pytest.approx(1, rel=1e-3)
    assert found["soft"].item() == free["soft"].item()
    wide = _objective(gate=False, bound=1e9)(student, teacher).parts
    assert wide["feature.0"].item() == free["feature.0"].item()


def test_labels_take_the_place_of_the_teachers_class() -> None:
    student, teacher = _pair()
    y, other = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 1, 1, 1, 1])
    log_p = torch.log_softmax(student["logits"], 1)
    rows = torch.arange(B)
    plain = _objective()(student, teacher, Labels(y, y, torch.ones(B))).parts["hard"]
    assert plain.item() == pytest.approx(-log_p[rows, y].mean().item(), rel=1e-5)
    mixed = _objective()(student, teacher, Labels(y, other, torch.full((B,), 0.7))).parts["hard"]
    assert mixed.item() == pytest.approx(-(0.7 * log_p[rows, y] + 0.3 * log_p[rows, other]).mean().item(), rel=1e-5)


def test_two_halves_average_to_the_whole_batch() -> None:
    student, teacher = _pair()
    whole = _objective()(student, teacher)
    agree = _objective().agreements(student, teacher)["logits"].sum()
    assert agree[None].item() >= 2
    halves = [
        Objective(
            TrainingOptions(), [LOGITS], {"logits": "logits"}, MAPS, [2.0, 0.5], add=lambda _: agree, processes=2
        )({k: v[part] for k, v in student.items()}, {k: v[part] for k, v in teacher.items()})
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert (halves[0].total + halves[1].total).item() / 2 == pytest.approx(whole.total.item(), rel=1e-5)


def test_tokens_first_maps_are_matched_image_by_image() -> None:
    student, teacher = _pair()
    objective = _objective(gate=False)
    f, g = student["f0"], teacher["g0"]
    turned = objective.distances(f.transpose(0, 1), g.transpose(0, 1), B)
    torch.testing.assert_close(turned, objective.distances(f, g, B))
    assert objective.distances(f.reshape(-1, 4)[:5], g.reshape(-1, 4)[:5], B).shape == (1,)


def test_boxes_in_pixels_count_as_shares_of_the_image() -> None:
    objective = Objective(TrainingOptions(alpha=0, beta=1, gamma=0), [Pair("box", "box")], {"box": "boxes"}, [], [])
    box, off = torch.tensor([[[0.5, 0.5, 1.0, 0.2], [0.1, 0.2, 0.3, 0.4]]]), torch.tensor([0.1, 0, 0, 0])
    for extent in (1, 400):
        found = objective({"box": extent * (box + off)}, {"box": extent * box})
        assert found.parts["soft"].item() == pytest.approx(0.1)


def _detector(sigmoid: bool) -> tuple[Objective, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(3)
    teacher = {"cls": torch.randn(B, 8, C, generator=rng), "box": torch.rand(B, 8, 4, generator=rng)}
    student = {"cls": teacher["cls"].clone(), "box": teacher["box"] + 0.1}
    student["cls"][:, :4] = -student["cls"][:, :4]
    outputs = [Pair("cls", "cls"), Pair("box", "box")]
    kinds = {"cls": "queries", "box": "boxes"}
    readings = {"cls": Reading(per_class=sigmoid)}
    return Objective(TrainingOptions(), outputs, kinds, [], [], readings), student, teacher  # type: ignore[arg-type]


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_detector_learns_boxes_of_the_queries_that_agree(sigmoid: bool) -> None:
    objective, student, teacher = _detector(sigmoid)
    agree = objective.agreements(student, teacher)["cls"]
    assert agree[:, 4:].all() and not agree[:, :4].any()
    far = {**student, "box": student["box"].clone()}
    far["box"][:, :4] += 9  # boxes of queries that disagree do not count
    a, b = objective(student, teacher), objective(far, teacher)
    assert a.total.item() == pytest.approx(b.total.item())
    same = objective(teacher, teacher)
    assert same.parts["soft"].item() == pytest.approx(0, abs=1e-6)
    assert a.parts["soft"].item() - same.parts["soft"].item() > 0.4, "four sides, each off by 0.1"


def test_pixels_and_raw_outputs() -> None:
    rng = torch.Generator().manual_seed(4)
    teacher = {"mask": torch.randn(2, C, 4, 4, generator=rng), "raw": torch.randn(2, 9, generator=rng)}
    outputs = [Pair("mask", "mask"), Pair("raw", "raw")]
    objective = Objective(TrainingOptions(), outputs, {"mask": "pixels", "raw": "raw"}, [], [])
    same = objective(teacher, teacher)
    assert same.parts["soft"].item() == pytest.approx(0, abs=1e-6) and same.parts["agree"].item() == 1
    student = {"mask": teacher["mask"].clone(), "raw": 2 * teacher["raw"]}
    student["mask"][:, :, :2] *= -1
    losses = objective(student, teacher)
    assert losses.parts["agree"].item() == pytest.approx(0.5, abs=0.1)
    assert losses.parts["soft"].item() > 1  # raw alone: ((2x - x)^2) / x^2 = 1
    assert torch.isfinite(losses.total)


def test_single_numbers_are_compared_over_the_batch() -> None:
    """One number an image, or one of the whole batch: a teacher's number next to zero drowns no other."""
    objective = _objective(gate=False)
    teacher = torch.tensor([1.0, -2.0, 1e-9, 3.0])
    student = teacher + torch.tensor([0.1, 0.0, 0.2, 0.0])
    want = (student - teacher).square().mean() / teacher.square().mean()
    for shape in ((4,), (4, 1)):
        found = objective.distances(student.reshape(shape), teacher.reshape(shape))
        torch.testing.assert_close(found, want.reshape(1), rtol=1e-5, atol=0)
    assert objective.distances(torch.tensor(1.5), torch.tensor(1.0)).tolist() == pytest.approx([0.25], rel=1e-5)


def test_outputs_that_have_no_batch_leave_the_number_of_images_to_the_maps() -> None:
    outputs = [Pair("scalar", "scalar"), Pair("score", "score")]
    objective = Objective(TrainingOptions(), outputs, {"scalar": "raw", "score": "raw"}, MAPS, [1.0, 1.0])
    student, teacher = _pair()
    student |= {"scalar": torch.tensor(2.0), "score": torch.ones(B)}
    teacher |= {"scalar": torch.tensor(1.0), "score": torch.full((B,), 2.0)}
    first = {"scalar": student["scalar"], **student}
    losses = objective(first, teacher, images=B)
    assert losses.parts["soft"].item() == pytest.approx(1 + 0.25, rel=1e-5)
    each = ((student["f0"] - teacher["g0"]) ** 2).mean((1, 2)) / ((teacher["g0"] ** 2).mean((1, 2)) + 1e-6)
    assert losses.parts["feature.0"].item() == pytest.approx(each.mean().item(), rel=1e-5)
