"""The paper's backbones, from three exporters: every Linear of every block is found, pruned, quantised and legal.

The weights are random, so accuracy means nothing here; the outputs' cosine does. The tiny models go through SparseGPT,
the others through magnitude, which edits the same weights in the same places and takes seconds; it moves the outputs of
random weights far, so that there INT8 is judged by itself, against the pruned float model. Engines are built of the
result and of its FP16 form (measured: at most 13 s of CPU time and 1 GB, Swin-Base). Polygraphy's sparsity inspection,
a minute for 50 M weights, sees all exports of the tiny models and one of each other one.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from acceptance_table import PREPROCESS, Table, assert_24, gpusq, planned, polygraphy_sparse, said

pytestmark = pytest.mark.slow

TITLE = "Backbones of the paper, random weights: prune24,qdq-int8 by exporter"
COLUMNS = [
    "model", "exporter", "blocks", "sites", "pruned", "quantised", "skipped and why", "pairs on activations",
    "cosine to dense", "to pruned float",
    "2:4 by polygraphy", "TensorRT", "with fp16", "apply",
]  # fmt: skip
BLOCKS = {
    "deit_tiny_224": 12, "deit_small_224": 12, "deit_base_224": 12,
    "swin_tiny_224": 12, "swin_small_224": 24, "swin_base_224": 24,
}  # fmt: skip
EXPORTERS = ("legacy17", "dynamo18", "dynamo20")
BLOCK_ROLES = Counter(("qkv", "proj", "fc1", "fc2"))


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("model", BLOCKS)
def test_model(
    model: str,
    exporter: str,
    export: Callable[[str, str], Path],
    shared: Path,
    parser_cache: Path,
    table: Table,
    tmp_path: Path,
) -> None:
    """Apply, inspect and check one export, and add its row."""
    original, written = export(model, exporter), tmp_path / "out.onnx"
    tiny = model.split("_")[1] == "tiny"
    passes = "prune24,qdq-int8" if tiny else "prune24{method=magnitude},qdq-int8"
    data = ("--data", str(shared / "data" / "imagenet" / "train"), *PREPROCESS, "--samples", "8")
    report, seconds = gpusq("apply", "--passes", passes, *data, "-o", str(written), str(original))
    inspection, _ = gpusq("inspect", str(written))
    parser = ("--parser", "--build", "--cpu-harness", str(parser_cache))
    check, _ = gpusq("check", *data, *parser, str(original), str(written))
    sparse = polygraphy_sparse(written) if tiny or exporter == "legacy17" else None
    rounding = None if tiny else _cosine_to_pruned(original, written, data)
    half, narrow = written.with_name("half.onnx"), ("--passes", "fp16")
    gpusq("apply", *narrow, *data, "-o", str(half), str(written))
    in_half, _ = gpusq("check", *data, *parser, str(written), str(half))
    for file in (written, half):
        file.unlink()

    roles: dict[int, Counter[str]] = {}
    for weight in inspection["weights"]:
        if weight["block"] is not None:
            roles.setdefault(weight["block"], Counter())[weight["role"]] += 1
    blocks = sum(found >= BLOCK_ROLES for found in roles.values())
    pruned, quantised = planned(report, "prune"), planned(report, "quantise weight")
    rows = report["steps"][0]["rows"]
    skipped = Counter(f"{row['role']}: {row['reason']}" for row in rows if row["decision"] == "skip")
    skipped += Counter(
        f"{row['role']}: {row['reason']}"
        for row in report["steps"][1]["rows"]
        if row["decision"] == "skip" and row["role"] not in ("Q", "K", "V", "softmax")
    )
    output, verdict = check["comparison"]["outputs"][0], check["parser"]
    half_output, half_verdict = in_half["comparison"]["outputs"][0], in_half["parser"]
    table.add(
        [
            model,
            exporter,
            f"{blocks} of {BLOCKS[model]}",
            str(len(rows)),
            str(len(pruned)),
            str(len(quantised)),
            "; ".join(f"{n} {why}" for why, n in skipped.items()),
            str(len(planned(report, "quantise activation"))),
            f"{output['cosine_mean']:.4f}",
            "-" if rounding is None else f"{rounding:.4f}",
            "-" if sparse is None else f"{len(pruned & sparse)} of {len(pruned)}",
            f"{verdict['library']}: {said(verdict)}",
            f"{said(half_verdict)}, cosine {half_output['cosine_mean']:.4f}",
            f"{seconds:.0f} s",
        ],
        model=model,
        exporter=exporter,
        passes=passes,
        blocks=blocks,
        sites=dict(Counter(row["role"] for row in rows)),
        pruned=len(pruned),
        quantised=len(quantised),
        activations=len(planned(report, "quantise activation")),
        skipped=dict(skipped),
        output=output,
        cosine_to_pruned=rounding,
        polygraphy=None if sparse is None else len(pruned & sparse),
        parser=verdict,
        fp16={"output": half_output, "parser": half_verdict},
        seconds=seconds,
    )
    assert blocks == len(roles) == BLOCKS[model], roles
    in_blocks = {weight["name"] for weight in inspection["weights"] if weight["block"] is not None}
    assert in_blocks <= pruned & quantised
    assert_24(report, inspection, sparse)
    assert verdict["built"]
    assert half_verdict["built"]
    assert output["nonfinite"] == half_output["nonfinite"] == 0
    assert half_output["cosine_mean"] > 0.99
    assert (output["cosine_mean"] if rounding is None else rounding) > 0.97


def _cosine_to_pruned(original: Path, written: Path, data: tuple[str, ...]) -> float:
    pruned = written.with_name("pruned.onnx")
    gpusq("apply", "--passes", "prune24{method=magnitude}", "-o", str(pruned), str(original))
    check, _ = gpusq("check", *data, str(pruned), str(written))
    pruned.unlink()
    return float(check["comparison"]["outputs"][0]["cosine_mean"])


@pytest.mark.parametrize("model", BLOCKS)
def test_exporters_agree(model: str, table: Table) -> None:
    """The same model gives the same sites, whoever exported it."""
    rows = [r for r in table.records if r["model"] == model]
    if len(rows) < 2:
        pytest.skip(f"needs two exports of {model} to compare, saw {len(rows)}")
    assert [r["exporter"] for r in rows] == list(EXPORTERS)
    found = [(r["sites"], r["pruned"], r["quantised"], r["activations"]) for r in rows]
    assert all(one == found[0] for one in found), found
