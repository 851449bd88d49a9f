"""Models that this project was not built with: every Linear is found, what stays in float has a reason, and it loads.

Random weights, so accuracy means nothing; `apply` itself proves that the file loads in a default session and computes
what it says. Weights and MACs are counted by `tools.zoo.count`, which shares no code with the product.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from acceptance_table import Table, gpusq, said

from tools.zoo.count import count
from tools.zoo.exports import Zoo
from tools.zoo.foreign import MODELS

pytestmark = pytest.mark.slow

TITLE = "Foreign corpus, random weights: qdq-int8"
COLUMNS = [
    "model", "weights", "INT8", "MACs in INT8", "in float, and why", "attention in float",
    "cosine to float", "default session to written", "TensorRT before", "after", "apply",
]  # fmt: skip
REASONS = (
    "a first layer", "a head", "depthwise", "groups of", "reduces over", "outputs: below", "its input is constant",
    "the constant is the left operand", "a ConvTranspose in groups", "joined by Concat",
)  # fmt: skip
EXPORTS = [f"{name}_{form}" for name, (_, _, forms) in MODELS.items() for form in forms]
LINEARS = 64  # the side from which a product counts


@pytest.mark.parametrize("export", EXPORTS)
def test_model(export: str, table: Table, parser_cache: Path, tmp_path: Path) -> None:
    """Quantise one export with two noise images, and count what was done by other code."""
    try:
        original = Zoo.default().foreign(export)
    except RuntimeError as error:
        table.add([export, *["-"] * 9, f"does not export: {error}"])
        pytest.skip(f"does not export: {error}")
    written, data = tmp_path / "out.onnx", _noise(original, tmp_path)
    parser = ("--parser", "--build", "--trt-cache", str(parser_cache))
    report, seconds = gpusq("apply", "--passes", "qdq-int8", "--data", str(data), "-o", str(written), str(original))
    check, _ = gpusq("check", "--data", str(data), *parser, str(original), str(written), ends=(0, 1))
    before, _ = gpusq("check", "--data", str(data), *parser, str(original), str(original), ends=(0, 1))

    rows = [row for row in report["steps"][-1]["rows"] if row["shape"] and row["op"] in ("MatMul", "Gemm", "Conv")]
    weights = [row for row in rows if row["decision"] in ("quantise weight", "skip") and len(row["shape"]) == 2]
    weights = [row for row in weights if row["role"] not in ("Q", "K", "V", "softmax")]
    left = {row["tensor"]: row["reason"] for row in weights if row["decision"] == "skip"}
    attention = Counter(row["reason"] for row in rows if row["role"] == "Q" and row["decision"] == "skip")
    counted = count(written)
    unexplained = [product for product in counted.linears(LINEARS) if not product.int8 and product.weight not in left]
    outputs = check["comparison"]["outputs"]
    cosines = [output["cosine_mean"] for output in outputs if output["cosine_mean"] is not None]
    proof = [output["cosine"] for output in report["proof"]["outputs"] if output["cosine"] is not None]
    verdicts = [document["parser"] for document in (before, check)]
    table.add(
        [
            export,
            str(len(weights)),
            str(len(weights) - len(left)),
            f"{counted.share(LINEARS):.1%}",
            "; ".join(f"{n} x {reason}" for reason, n in Counter(left.values()).items()),
            "; ".join(f"{n} x {reason}" for reason, n in attention.items()) or "-",
            f"{min(cosines):.4f}" if cosines else "-",
            f"{min(proof):.4f}" if proof else "-",
            *(said(verdict) for verdict in verdicts),
            f"{seconds:.0f} s",
        ],
        report=report["steps"][-1]["rows"],
    )
    assert not unexplained, unexplained
    assert all(any(reason in text for reason in REASONS) for text in left.values()), left
    assert not any("not known" in reason for reason in attention)
    assert said(verdicts[1]) == said(verdicts[0])
    assert report["proof"]["default"] in ("ran", "loaded")


def _noise(model: Path, folder: Path) -> Path:
    """Two samples of noise for the first input, as .npz."""
    (value,) = onnx.load(model, load_external_data=False).graph.input
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [2, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])]
    arrays: dict[str, Any] = {value.name: np.random.default_rng(0).standard_normal(shape).astype(kind)}
    np.savez(folder / "noise.npz", **arrays)
    return folder / "noise.npz"
