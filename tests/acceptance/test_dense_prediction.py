"""The paper's detectors and segmenter: pruned, quantised, narrowed to FP16, and an engine built of each.

The weights are random, so boxes and masks mean nothing here; what holds is that every Linear of the backbone and the
transformer is found, that nothing becomes infinite, and that TensorRT takes what it took before. The R-CNNs it refuses
also uncompressed, on machines without a GPU (NonZero is a plugin there, and it has none): for those the verdict must
be the one on the original, and an engine is built of what comes before NonMaxSuppression and NonZero.
"""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from acceptance_table import Table, assert_24, gpusq, planned, said
from onnx.utils import extract_model

from gpusq_onnx.graph.io import load
from gpusq_onnx.torchgraph.prefix import trainable_prefix

pytestmark = pytest.mark.slow

TITLE = "Detectors and segmenter of the paper, random weights, 512 x 512: prune24{method=magnitude},qdq-int8"
COLUMNS = ["model", "exporter", "pruned", "quantised", "TensorRT, original", "compressed", "with fp16", "apply"]
EXPORTS = [
    ("detr_r50", "legacy17"), ("detr_r50", "dynamo20"),
    ("deformable_detr_r50", "legacy17"), ("deformable_detr_r50", "dynamo20"),
    ("upernet_swin_tiny", "legacy17"), ("upernet_swin_tiny", "dynamo20"),
    ("mask_rcnn_swin_tiny", "legacy17"), ("cascade_mask_rcnn_swin_tiny", "legacy17"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "exporter"), EXPORTS)
def test_model(
    model: str,
    exporter: str,
    export: Callable[[str, str], Path],
    shared: Path,
    parser_cache: Path,
    table: Table,
    tmp_path: Path,
) -> None:
    """Apply and build one export, in INT8 and in INT8 with FP16, and add its row."""
    original, written, half = export(model, exporter), tmp_path / "out.onnx", tmp_path / "half.onnx"
    images = ("--data", str(shared / "data" / "imagenet" / "train"), "--resize", "512", "--crop", "512")
    data = (*images, "--samples", "2")
    passes = "prune24{method=magnitude},qdq-int8"
    report, seconds = gpusq("apply", "--passes", passes, *data, "-o", str(written), str(original))
    inspection, _ = gpusq("inspect", str(written))
    gpusq("apply", "--passes", "fp16", *data, "-o", str(half), str(written))
    parser = ("--parser", "--build", "--cpu-harness", str(parser_cache))
    front_ends = trainable_prefix(load(original)) if "rcnn" in model else []
    verdicts, built, nonfinite = [], [], 0
    for file in (original, written, half):
        check, _ = gpusq("check", *data, *parser, str(original), str(file), ends=(0, 1))  # 1: TensorRT refuses
        verdicts.append(check["parser"])
        nonfinite += sum(output["nonfinite"] for output in check["comparison"]["outputs"])
        if front_ends:
            front = _front(file, tmp_path, front_ends)
            check, _ = gpusq("check", *data, *parser, str(front), str(front))
        built.append(check["parser"]["built"])
    pruned, quantised = planned(report, "prune"), planned(report, "quantise weight")
    words = [
        f"{said(v)}{', its front built' if b and not v['built'] else ''}" for v, b in zip(verdicts, built, strict=True)
    ]
    table.add(
        [model, exporter, str(len(pruned)), str(len(quantised)), *words, f"{seconds:.0f} s"],
        model=model,
        exporter=exporter,
        pruned=len(pruned),
        quantised=len(quantised),
        verdicts=verdicts,
        built=built,
        seconds=seconds,
    )
    assert_24(report, inspection, None)
    assert quantised
    assert nonfinite == 0
    assert all(verdict["errors"] == verdicts[0]["errors"] for verdict in verdicts)
    assert all(built)


def _front(file: Path, folder: Path, names: list[str]) -> Path:
    """The part of a model that ends in the tensors `names`."""
    front = folder / f"{file.stem}_front.onnx"
    inputs = [given.name for given in onnx.load(str(file)).graph.input]
    extract_model(str(file), str(front), inputs, names, check_model=False)
    return front
