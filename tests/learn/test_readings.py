"""Outputs that are probabilities teach what the logits before them would, and are recognised by their values."""

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.learn.objectives import Labels, Objective, Pair  # noqa: E402
from gpusq_onnx.learn.readings import Reading, reading  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402
from gpusq_onnx.tasks.kinds import Kind  # noqa: E402

SHAPES: dict[Kind, tuple[int, ...]] = {"logits": (8, 5), "queries": (8, 7, 5), "pixels": (8, 5, 3, 4)}
Tensor = torch.Tensor


def _logits(kind: Kind) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    taught = 4 * torch.randn(SHAPES[kind], generator=rng)
    return taught + torch.randn(SHAPES[kind], generator=rng), taught


def _losses(seen: Tensor, taught: Tensor, kind: Kind, read: Reading) -> tuple[dict[str, float], Tensor]:
    seen = seen.clone().requires_grad_()
    objective = Objective(TrainingOptions(), [Pair("y", "y")], {"y": kind}, [], [], {"y": read})
    labels = Labels(torch.arange(8) % 5, torch.arange(8) % 5, torch.ones(8))
    losses = objective({"y": seen}, {"y": taught}, labels)
    losses.total.backward()  # type: ignore[no-untyped-call]
    return {name: value.item() for name, value in losses.parts.items()}, seen.grad


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("end", [torch.softmax, torch.log_softmax])
@pytest.mark.parametrize("ends", [(True, True), (True, False), (False, True)], ids=["both", "student", "teacher"])
def test_a_softmax_at_the_end_changes_no_loss(kind: Kind, end: Callable[..., Tensor], ends: tuple[bool, bool]) -> None:
    raw, axis = _logits(kind), -1 if kind == "queries" else 1
    seen, taught = (end(z, axis) if closed else z for z, closed in zip(raw, ends, strict=True))
    want, _ = _losses(*raw, kind, Reading())
    found, slope = _losses(seen, taught, kind, reading(seen, taught, kind))
    assert found == pytest.approx(want, rel=1e-4)
    assert slope.isfinite().all()


def test_a_sigmoid_for_each_class_of_a_query_changes_none_either() -> None:
    seen, taught = (z - 6 for z in _logits("queries"))
    plain = reading(seen, taught, "queries")
    assert plain == Reading(per_class=True), "most queries name no class"
    want, _ = _losses(seen, taught, "queries", plain)
    closed = reading(seen.sigmoid(), taught.sigmoid(), "queries")
    assert closed == Reading("sigmoid", "sigmoid", True)
    found, slope = _losses(seen.sigmoid(), taught.sigmoid(), "queries", closed)
    assert found == pytest.approx(want, rel=1e-3) and slope.isfinite().all()


def test_sums_that_rounding_moved_are_still_probabilities() -> None:
    seen, taught = (z.softmax(-1) for z in _logits("logits"))
    rounded = (seen * 127).round() / 127
    assert (rounded.sum(-1) - 1).abs().max() > 1e-3
    assert reading(rounded, taught, "logits") == Reading("softmax", "softmax")
    found, slope = _losses(rounded, taught, "logits", Reading("softmax", "softmax"))
    assert slope.isfinite().all() and found["soft"] < 100
