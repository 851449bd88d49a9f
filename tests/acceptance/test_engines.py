"""Engines of two real models in every form, built without a GPU: each weight computes as `inspect` predicts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from acceptance_table import Table, gpusq

pytestmark = pytest.mark.slow

TITLE = "Engines built without a GPU, by TensorRT-RTX's builder: what each weight computes in"
COLUMNS = ["model", "pipeline", "engine", "build", "layers", "weights: predicted, built", "as predicted"]

CASES = [
    ("vit_tiny_imagenet", ""),
    ("vit_tiny_imagenet", "fp16"),
    ("vit_tiny_imagenet", "qdq-int8{profile=accurate}"),
    ("vit_tiny_imagenet", "prune24{method=magnitude},qdq-int8{profile=sparse-int8}"),
    ("vit_tiny_imagenet", "prune24{method=magnitude},qdq-int8{profile=sparse-int8},fp16"),
    ("deimv2_atto", ""),
    ("deimv2_atto", "fp16"),
    ("deimv2_atto", "prune24{method=magnitude},qdq-int8{profile=sparse-int8}"),
    ("deimv2_atto", "prune24{method=magnitude},qdq-int8,fp16"),
]


def inputs_of(name: str, folder: Path) -> Path:
    """Four random inputs of a detector: scales need not be good here, only there."""
    images = np.random.default_rng(0).random((4, 3, 320, 320), np.float32)
    np.savez(folder / f"{name}.npz", images=images, orig_target_sizes=np.full((4, 2), 320, np.int64))
    return folder / f"{name}.npz"


@pytest.mark.parametrize(("name", "passes"), CASES)
def test_an_engine_comes_out(
    name: str, passes: str, shared: Path, parser_cache: Path, table: Table, tmp_path: Path
) -> None:
    """Apply, build, and compare prediction with the engine's own layer list."""
    model = shared / "data" / f"{name}.onnx"
    if passes:
        data = ("--data", str(inputs_of(name, tmp_path))) if name == "deimv2_atto" else ("--samples", "4")
        gpusq("apply", "--passes", passes, *data, "-o", str(tmp_path / "m.onnx"), str(model))
        model = tmp_path / "m.onnx"
    plan = tmp_path / "m.plan"
    found, _ = gpusq("build", str(model), "-o", str(plan), "--batch", "1,8,16", "--cpu-harness", str(parser_cache))
    weights = found["weights"]
    reported = [weight for weight in weights if weight["precision"]]
    agree = [weight for weight in reported if weight["precision"] == weight["predicted"].split()[1]]
    kinds = Counter(f"{weight['predicted']}, {weight['precision'] or '?'}" for weight in weights)
    table.add(
        [
            name,
            passes or "(as it is)",
            f"{plan.stat().st_size / 2**20:.1f} MiB",
            f"{found['engine']['seconds']:.1f} s",
            str(len(found["layers"])),
            "; ".join(f"{number} x {kind}" for kind, number in kinds.most_common()),
            f"{len(agree)} of {len(weights)}",
        ],
        model=name,
        passes=passes,
        verdicts=found["verdicts"],
        seconds=found["engine"]["seconds"],
    )
    assert found["engine"]["deployable"] is False
    assert plan.stat().st_size == found["engine"]["bytes"] > 1e6
    if name == "vit_tiny_imagenet":
        assert len(agree) == len(weights), found["verdicts"]
    else:
        assert len(agree) >= 0.9 * len(weights), found["verdicts"]
