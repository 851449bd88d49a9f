"""A real COCO detector on 50 annotated images: what each pass costs in average precision, and that TensorRT takes it.

50 images are few: AP moves by 0.3 points (one standard deviation over variants of the calibration) when nothing but
rounding differs. What must not cost accuracy has a bar all the same. Calibrated on 16 of the images, without boxes.
"""

from pathlib import Path

import pytest
from acceptance_table import STRETCHED, Table, gpusq, said, short

pytestmark = pytest.mark.slow

TITLE = "DEIMv2-Atto, 50 COCO images"
COLUMNS = ["passes", "AP", "AP50", "AP75", "must hold", "TensorRT", "apply", "command"]
DENSE = 0.28  # measured: 0.2865 (AP50 0.455)
POINTS = {"fp16": 0.5, "qdq-int8": 0.5, "qdq-int8,fp16": 0.5, "prune24{method=sparsegpt}": None}


@pytest.mark.parametrize("passes", POINTS)
def test_average_precision(passes: str, shared: Path, parser_cache: Path, table: Table, tmp_path: Path) -> None:
    """AP falls by no more than POINTS percentage points."""
    coco, model, out = shared / "data" / "coco_mini", shared / "data" / "deimv2_atto.onnx", tmp_path / "out.onnx"
    data = ("--data", str(coco / "images"), *STRETCHED)
    command = ("apply", "--passes", passes, *data, "--samples", "16", "-o", str(out), str(model))
    _, seconds = gpusq(*command)
    truth = ("--annotations", str(coco / "instances.json"), "--parser", "--build", "--cpu-harness", str(parser_cache))
    check, _ = gpusq("check", *data, *truth, str(model), str(out))
    before, after = (check["comparison"][f"{side}_metrics"] for side in ("reference", "candidate"))
    if not table.rows:
        table.add(["dense", *_row(before), f">= {DENSE}", "", "", ""], name="dense", metrics=before)
    bar = POINTS[passes]
    must = "" if bar is None else f"drop <= {bar:g}"
    row = [passes, *_row(after), must, said(check["parser"]), f"{seconds:.0f} s", short(command, shared)]
    table.add(row, name=passes, metrics=after, comparison=check["comparison"])
    assert before["AP"] >= DENSE
    assert before["n"] == after["n"] == 50
    assert check["parser"]["built"]
    assert bar is None or 100 * (before["AP"] - after["AP"]) <= bar


def _row(metrics: dict[str, float]) -> list[str]:
    return [f"{metrics[name]:.3f}" for name in ("AP", "AP50", "AP75")]
