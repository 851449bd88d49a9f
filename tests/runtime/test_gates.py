import pytest

from gpusq_onnx.errors import GateFailed, UsageError
from gpusq_onnx.runtime.compare.difference import OutputDifference
from gpusq_onnx.runtime.compare.gates import Gates
from gpusq_onnx.runtime.compare.outputs import Comparison


def comparison(*, nonfinite: int = 0, mismatches: int = 0, classifier: bool = True) -> Comparison:
    output = OutputDifference("y", 0.5, 0.1, 10.0, 0.05, 0.01, 0.98, 0.9, nonfinite, mismatches)
    if not classifier:
        return Comparison(10, [output])
    return Comparison(10, [output], 0.9, 1.0, {"top1": 0.80}, {"top1": 0.785})


def detector() -> Comparison:
    before, after = {"AP": 0.30, "mask_AP": 0.25, "mIoU": 0.45}, {"AP": 0.285, "mask_AP": 0.22, "mIoU": 0.44}
    return Comparison(10, comparison().outputs, None, None, before, after)


@pytest.mark.parametrize(
    ("met", "missed", "words"),
    [
        ({"min_cosine": 0.98}, {"min_cosine": 0.981}, r"output y has cosine 0\.980000, at least 0\.981"),
        ({"min_top1": 0.785}, {"min_top1": 0.8}, r"top-1 is 0\.7850, at least 0\.8"),
        ({"min_agreement": 0.9}, {"min_agreement": 0.95}, r"top-1 agreement is 0\.9000, at least 0\.95"),
        ({"max_top1_drop": 1.5}, {"max_top1_drop": 1.4}, r"top-1 falls by 1\.50 points, at most 1\.4"),
    ],
)
def test_a_gate_opens_at_its_bound_and_names_what_missed_it(
    met: dict[str, float], missed: dict[str, float], words: str
) -> None:
    Gates(**met).check(comparison())
    with pytest.raises(GateFailed, match=words) as caught:
        Gates(**missed).check(comparison())
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("met", "missed", "words"),
    [
        ({"min_ap": 0.285}, {"min_ap": 0.3}, r"AP is 0\.2850, at least 0\.3"),
        ({"max_ap_drop": 1.5}, {"max_ap_drop": 1.4}, r"AP falls by 1\.50 points, at most 1\.4"),
        ({"min_mask_ap": 0.22}, {"min_mask_ap": 0.23}, r"mask AP is 0\.2200, at least 0\.23"),
        ({"max_mask_ap_drop": 3}, {"max_mask_ap_drop": 2.9}, r"mask AP falls by 3\.00 points, at most 2\.9"),
        ({"min_miou": 0.44}, {"min_miou": 0.45}, r"mean IoU is 0\.4400, at least 0\.45"),
        ({"max_miou_drop": 1}, {"max_miou_drop": 0.9}, r"mean IoU falls by 1\.00 points, at most 0\.9"),
    ],
)
def test_a_detector_and_a_segmenter_have_gates_of_their_own(
    met: dict[str, float], missed: dict[str, float], words: str
) -> None:
    Gates(**met).check(detector())
    with pytest.raises(GateFailed, match=words):
        Gates(**missed).check(detector())


def test_all_failures_are_told_at_once() -> None:
    with pytest.raises(GateFailed, match=r"2 of the checks failed(.|\n)*cosine(.|\n)*agreement"):
        Gates(min_cosine=0.999, min_agreement=0.99).check(comparison())


def test_no_gate_passes_all_but_values_that_are_not_finite() -> None:
    Gates().check(comparison())
    with pytest.raises(GateFailed, match="3 values that are NaN"):
        Gates().check(comparison(nonfinite=3))


def test_what_was_not_compared_meets_no_gate() -> None:
    Gates(min_agreement=0.5).check(comparison(mismatches=2))
    with pytest.raises(GateFailed, match="another shape in 2 batches"):
        Gates(min_cosine=0.5).check(comparison(mismatches=2))
    nothing = Comparison(1, [OutputDifference("y", None, None, None, None, None, None, None, 0, 0)])
    with pytest.raises(GateFailed, match="nothing to compare"):
        Gates(min_cosine=0.5).check(nothing)


@pytest.mark.parametrize("gates", [Gates(min_agreement=0.5), Gates(max_top1_drop=1.0), Gates(min_top1=0.1)])
def test_a_gate_that_cannot_be_answered_is_a_usage_error(gates: Gates) -> None:
    with pytest.raises(UsageError, match="needs a classifier"):
        gates.check(comparison(classifier=False))


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (Gates(max_ap_drop=1.0), r"needs a detector(.|\n)*--annotations"),
        (Gates(min_ap=0.1), r"needs a detector(.|\n)*--annotations"),
        (Gates(min_mask_ap=0.1), r"gate min_mask_ap needs a detector that gives masks"),
        (Gates(min_miou=0.1), r"needs a segmenter(.|\n)*--masks"),
    ],
)
def test_another_task_s_gate_on_a_classifier_is_a_usage_error(gates: Gates, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        gates.check(comparison())


@pytest.mark.parametrize(
    "bound",
    [
        {"min_cosine": 1.1},
        {"min_top1": -1.0},
        {"min_agreement": 95.0},
        {"max_top1_drop": float("nan")},
        {"min_ap": 28.0},
    ],
)
def test_a_bound_out_of_range_is_a_usage_error(bound: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"gate {next(iter(bound))} is out of range"):
        Gates(**bound)
