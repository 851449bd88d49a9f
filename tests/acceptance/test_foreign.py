"""Models that this project was not built with: each is compressed whole, loads everywhere, and computes the same.

Random weights, so accuracy means nothing. Of each export:

    weights     every product that the independent count (`tools.zoo.count`, which shares no code with the product)
                finds is INT8, or the report has its weight with a reason from the list; the share of MACs is of Linears
                with both sides >= 64
    outputs     cosine of INT8 to float >= 0.995; of outputs after a choice (TopK of queries), with both models on the
                original's choice (`tools.zoo.choices`)
    sessions    the written file runs in a default session of onnxruntime and in one without optimisations
    TensorRT    parser and build go as far with the result as with the model that came in, or further
    training    pruned, quantised, and trained three steps by `distill` and three by `qat`
    sparse      with pairs on the outputs, and FP16 around: proven like all others

One row: `pytest -s -m slow tests/acceptance/test_foreign.py -k segformer_half`. With GPUSQ_RESUME=1, rows that an
earlier run of the same code left in out/acceptance/foreign are taken from there.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from acceptance_table import Table, gpusq, said

from tools.zoo.choices import cosines_on_one_choice
from tools.zoo.count import Product, count
from tools.zoo.exports import Zoo
from tools.zoo.families import EXPORTS, MODELS

pytestmark = pytest.mark.slow

TITLE = "Foreign corpus, random weights: qdq-int8; and prune24{method=magnitude},qdq-int8 with three training steps"
COLUMNS = [
    "model", "products", "weights", "INT8", "MACs in INT8", "in float, and why", "attention in float",
    "cosine to float", "default session to written", "TensorRT before", "after", "apply",
    "pruned", "three steps",
]  # fmt: skip
REASONS = (
    "a first layer", "a head", "depthwise", "groups of", "reduces over", "input channel(s)", "outputs: below",
    "its input is constant", "the constant is the left operand", "a ConvTranspose in groups", "one matrix for each of",
    "multiplies with a vector", "no product with one matrix", "two tensors of data, in no attention core",
)  # fmt: skip
ATTENTION = ("tokens: above", "a fused Attention node", "learned queries that a run computes")
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum")
VERDICTS = ("REFUSED", "parsed", "built")
LINEARS = 64  # the side from which a product counts
LEAST = 0.995
STEPS = 3
KEPT = Path("out/acceptance/foreign")


@pytest.mark.parametrize("export", EXPORTS)
def test_model(export: str, table: Table, parser_cache: Path, tmp_path: Path) -> None:
    """Compress one export with two noise images, and judge what was done by other code."""
    kept = KEPT / f"{export}.json"
    if os.environ.get("GPUSQ_RESUME") and kept.is_file():
        row = json.loads(kept.read_text(encoding="utf-8"))
        table.add(row["cells"], **row["record"])
        return
    try:
        original = Zoo.default().foreign(export)
    except RuntimeError as error:
        table.add([export, *["-"] * (len(COLUMNS) - 2), f"does not export: {error}"])
        pytest.skip(f"does not export: {error}")
    name, _, form = export.rpartition("_")
    family, data = MODELS[name], tmp_path / "noise.npz"
    np.savez(data, **family.samples(2, form))  # type: ignore[arg-type]  # numpy's stub knows no keyword arrays
    shapes = {key: list(x.shape) for key, x in family.samples(1, form).items()}

    written = tmp_path / "out.onnx"
    report, seconds = gpusq("apply", "--passes", "qdq-int8", "--data", str(data), "-o", str(written), str(original))
    rows = report["steps"][-1]["rows"]
    weights = {row["tensor"]: row for row in rows if _is_weight(row)}
    left = {tensor: row["reason"] for tensor, row in weights.items() if row["decision"] == "skip"}
    attention = Counter(row["reason"] for row in rows if row["role"] == "Q" and row["decision"] == "skip")
    counted = count(written, shapes)
    parser = ("--parser", "--build", "--cpu-harness", str(parser_cache))
    check, _ = gpusq("check", "--data", str(data), *parser, str(original), str(written), ends=(0, 1))
    before, _ = gpusq("check", "--data", str(data), *parser, str(original), str(original), ends=(0, 1))
    verdicts = [said(document["parser"]) for document in (before, check)]
    trained, training = _trained(original, data, tmp_path / "trained.onnx")
    after_choice = {output["output"] for output in report["proof"]["outputs"] if not output["judged"]}
    cosines = {o["name"]: o["cosine_mean"] for o in check["comparison"]["outputs"] if o["cosine_mean"] is not None}
    same = cosines_on_one_choice(original, written, family.samples(2, form)) if after_choice else {}
    low = {output: cosine for output, cosine in {**cosines, **same}.items() if cosine < LEAST}
    proof = [output["cosine"] for output in report["proof"]["outputs"] if output["cosine"] is not None]

    cells = [
        export,
        str(len(counted.products)),
        str(len(weights)),
        str(len(weights) - len(left)),
        f"{counted.share(LINEARS):.1%}",
        _counts(left.values()),
        _counts(attention.elements()),
        "; ".join(f"{cosine:.4f} {_why(output, after_choice, same)}".strip() for output, cosine in cosines.items()),
        f"{min(proof):.4f}" if proof else "-",
        *verdicts,
        f"{seconds:.0f} s",
        _pruned(trained),
        f"{training:.0f} s",
    ]
    print(f"\n| {' | '.join(cells)} |", flush=True)
    table.add(cells, export=export, report=rows)
    named = _with_equal_ones(written, left.keys())
    named |= {row["tensor"] for step in report["steps"] for row in step["rows"] if row["decision"] == "skip"}
    unexplained = [product for product in counted.products if not product.int8 and not _among(product, named)]
    assert not unexplained, unexplained
    lost = len(count(original, shapes).products) - len(counted.products)
    assert lost <= 0, lost  # an Attention that was taken apart shows a product more where its queries are constant
    assert counted.inner == 0
    assert all(any(reason in text for reason in REASONS) for text in left.values()), left
    assert all(any(reason in text for reason in ATTENTION) for text in attention), attention
    assert low.keys() <= after_choice - same.keys(), low
    assert VERDICTS.index(verdicts[1]) >= VERDICTS.index(verdicts[0]), verdicts
    assert report["proof"]["default"] == report["proof"]["unoptimised"] == "ran", report["proof"]
    KEPT.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"cells": cells, "record": table.records[-1]}), encoding="utf-8")


@pytest.mark.parametrize("export", EXPORTS)
def test_sparse_int8_and_fp16(export: str, tmp_path: Path) -> None:
    """The pipeline of sparse engines: the proof holds, with pairs on outputs and scales and biases in FP16."""
    try:
        original = Zoo.default().foreign(export)
    except RuntimeError as error:
        pytest.skip(f"does not export: {error}")
    name, _, form = export.rpartition("_")
    data, passes = tmp_path / "noise.npz", "prune24{method=magnitude},qdq-int8{profile=sparse-int8},fp16"
    np.savez(data, **MODELS[name].samples(2, form))  # type: ignore[arg-type]  # numpy's stub knows no keyword arrays
    passes = passes.removesuffix(",fp16") if form == "half" else passes
    report, _ = gpusq("apply", "--passes", passes, "--data", str(data), "-o", str(tmp_path / "out.onnx"), str(original))
    assert report["proof"]["default"] == report["proof"]["unoptimised"] == "ran", report["proof"]


def _trained(original: Path, data: Path, written: Path) -> tuple[dict[str, Any], float]:
    """The report of pruning, quantising and training; its losses are numbers, and the file runs."""
    passes = ("--passes", "prune24{method=magnitude},qdq-int8", "--finetune-steps", str(STEPS))
    report, seconds = gpusq("apply", *passes, "--data", str(data), "-o", str(written), str(original))
    learned = [step for step in report["steps"] if step["name"] in ("distill", "qat")]
    assert [step["options"]["steps"] for step in learned] == [STEPS, STEPS]
    assert all(math.isfinite(loss) for step in learned for loss in _losses(step["findings"]["curve"]))
    assert report["proof"]["default"] == "ran"
    return report, seconds


def _losses(curve: Any) -> list[float]:
    """Every number of a curve, however it is nested."""
    if isinstance(curve, dict):
        return [loss for part in curve.values() for loss in _losses(part)]
    if isinstance(curve, list):
        return [loss for part in curve for loss in _losses(part)]
    return [curve] if isinstance(curve, (int, float)) else []


def _among(product: Product, named: set[str]) -> bool:
    """Whether its weight is named, or its result: of an Einsum that is no Linear; an outer product (k = 1) is none."""
    return product.k == 1 or product.weight in named or product.result in named


def _with_equal_ones(written: Path, names: Collection[str]) -> set[str]:
    """These constants and all of the same values, stored or by Identity: a weight that an export holds twice is one."""
    graph = onnx.load(written).graph
    held = {i.name: (i.data_type, *i.dims, onnx.numpy_helper.to_array(i).tobytes()) for i in graph.initializer}
    same = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in held]
    held |= {node.output[0]: held[node.input[0]] for node in same}
    values = {held[name] for name in names if name in held}
    return {*names, *(name for name, value in held.items() if value in values)}


def _is_weight(row: dict[str, Any]) -> bool:
    product = row["op"] in PRODUCTS and len(row["shape"] or ()) == 2 and row["role"] not in ("Q", "K", "V", "softmax")
    return product and row["decision"] in ("quantise weight", "skip")


def _pruned(report: dict[str, Any]) -> str:
    (rows,) = (step["rows"] for step in report["steps"] if step["name"] == "prune24")
    decisions = Counter(row["decision"] for row in rows)
    return f"{decisions['prune']} of {decisions.total()}"


def _counts(reasons: Any) -> str:
    return "; ".join(f"{n} x {reason}" for reason, n in Counter(reasons).items()) or "-"


def _why(output: str, after_choice: set[str], same: dict[str, float]) -> str:
    if output not in after_choice:
        return ""
    return f"({same[output]:.4f} on the same choice)" if output in same else "(after a choice)"
