"""The digest of a learning pass: curves, weight factors, scales, masks, agreement; nothing where none was learned."""

from gpusq_onnx.pipeline.learned import Learned
from gpusq_onnx.report.learning import learning, sparkline, thinned
from gpusq_onnx.report.sheet import Item, markdown

FINDINGS = {
    "curve": [
        {"step": step, "loss": 8.0 / step, "soft": 0.5 / step, "agree": 1 - 0.5 / step, "lr": 1e-4}
        for step in range(1, 101)
    ],
    "distances": {"stage.0": 0.25, "stage.1": 0.5},
    "factors": {"stage.0": 1.3333333, "stage.1": 0.6666667},
    "movement": {"a_scale": [0.5, 0.25], "b_scale": [0.5, 0.6], "c_scale": [2.0, 2.0]},
    "masks": {"weights": 12, "checks": 101},
    "agreement": {"images": 512, "before": 0.5, "after": 0.7512},
}


def test_everything_that_was_learned_is_told() -> None:
    text = markdown(learning(Learned.of(FINDINGS)))
    lines = text.splitlines()
    assert "loss █▃" in text
    assert " 8 -> 0.08" in text
    rows = [line for line in lines if line.startswith("| ") and line[2].isdigit()]
    assert [int(row.split("|")[1]) for row in rows] == [1, 15, 29, 43, 58, 72, 86, 100]
    assert "lr" not in text
    assert "| stage.1              | 0.5  | 0.6667 |" in lines
    assert "- scales: 2 of 3 moved, by a factor of 0.5 to 1.2, median 0.85" in lines
    assert "- masks: 12 weights follow their pattern; looked at 101 times, never broken" in lines
    assert "- agreement with the teacher on 512 images: 50.0% -> 75.1%" in lines


def test_other_passes_have_nothing_to_tell() -> None:
    assert list(learning(Learned.of({}))) == []
    assert list(learning(Learned.of({"images": 8, "scales": {"x": 0.1}, "energy_kept": {"w": 0.9}}))) == []


def test_parts_that_were_not_found_are_left_out() -> None:
    assert list(learning(Learned.of({"masks": FINDINGS["masks"], "movement": {}}))) == [
        Item("masks: 12 weights follow their pattern; looked at 101 times, never broken")
    ]
    assert list(learning(Learned.of({"factors": {"m": 1.0}})))[-1].rows == [["m", "-", "1"]]


def test_many_feature_maps_are_told_as_their_mean() -> None:
    curve = [{"step": 1, "loss": 2.0, **{f"feature.{i}": float(i) for i in range(5)}}]
    (_, grid) = learning(Learned.of({"curve": curve}))
    assert (grid.header, grid.rows) == (["step", "loss", "mean of 5 features"], [["1", "2", "2"]])


def test_curves_of_any_values() -> None:
    assert sparkline([0.0, 7.0]) == "▁█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0.0, float("nan"), 1.0]) == "▁ █"
    assert sparkline([]) == ""
    assert thinned(range(10), 4) == [0, 3, 6, 9]
    assert thinned([1, 2], 4) == [1, 2]
