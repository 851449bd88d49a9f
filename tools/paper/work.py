"""One row of the tables: what a model costs, counted from its shapes, and what becomes of it when it is compressed.

    shapes(row)           export, count, plan both formats, ask the parser; one run where shapes are not known
    compressed(row, form) export, prune, quantise, measure, check codes independently, pack, compare, build

Both return plain values. Random weights are compressed by magnitude and calibrated on two synthetic images: sizes and
legality do not depend on values, outputs do, so their agreement says that nothing broke and no more. Real weights are
pruned by SparseGPT on training images and scored on validation images.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpusq_onnx.errors import EnvironmentLacking
from gpusq_onnx.graph.cost import attention_macs
from gpusq_onnx.graph.io import file_digest, load
from gpusq_onnx.graph.model import Model, type_name
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.summary import measure
from gpusq_onnx.quant.formats import natural
from gpusq_onnx.runtime.observed import observed
from gpusq_onnx.runtime.tensorrt.parser import Verdict, parser_verdict
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.workflows.apply import compress
from gpusq_onnx.workflows.check import check
from gpusq_onnx.workflows.pack import pack
from gpusq_onnx.workflows.plan import plan
from tools.paper.rows import FORMATS, Format, Row
from tools.zoo.checker import Weight, weights_of
from tools.zoo.exports import ROOT, Zoo, shared_folder

OUT = ROOT / "out" / "paper"
EXPORTER = "legacy17"
SAMPLES = 2  # synthetic images that calibrate and compare random weights
_STEP = 1e-9  # of equal ratios

IMAGENET: Mapping[str, Any] = {"resize": 248, "crop": 224, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_COCO: Mapping[str, Any] = {"fit": "stretch", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def shapes(row: Row, harness: Path) -> dict[str, Any]:
    """What the dense model costs, from its shapes; and whether a TensorRT parser takes it."""
    path = file_of(row)
    model = load(path)
    structure = observed(model)
    forms = {} if row.real else FORMATS
    return {
        "file_bytes": path.stat().st_size,
        "model_sha256": file_digest(path),
        "dense": measure(model, structure).total,
        "attention_macs": sum(attention_macs(found, structure) for found in structure.attentions),
        "tables": table_elements(model, structure),
        "planned": {key: planned(path, form) for key, form in forms.items()},
        "parser": _verdict(path, harness, build=False),
    }


def planned(path: Path, form: Format) -> dict[str, Any]:
    """What the passes would make of it, by their own plan: measures that need no run; scales are not counted."""
    after = plan(path, form.passes, data_options={"samples": SAMPLES}).outcome.after
    return {"after": after.total, "formed": formed(after.sites.values(), form)}


def compressed(row: Row, form: Format, harness: Path, scratch: Path) -> dict[str, Any]:
    """What becomes of the model in a format: measures, codes, bytes, agreement, verdict."""
    path, packed = file_of(row), scratch / "small.gpusq"
    written = kept(row, form) if row.real else scratch / "small.onnx"
    written.parent.mkdir(parents=True, exist_ok=True)
    passes, data, options = calibration(row, form)
    result = compress(path, passes, data=data, data_options=options, output=written)
    model = load(written)
    cost = measure(model, observed(model))
    pack(written, packed)
    return {
        "pipeline": result.pipeline,
        "model_sha256": result.outcome.input.sha256,
        "weights": "real" if row.real else "random",
        "after": cost.total,
        "formed": formed(cost.sites.values(), form),
        "codes": codes(weights_of(written), form.rule),
        "left": left_out(result.rows),
        "file_bytes": written.stat().st_size,
        "packed_bytes": packed.stat().st_size,
        "check": comparison(row, path, written),
        "parser": _verdict(written, harness, build=True),
    }


def passes_of(row: Row, kind: str) -> str:
    """What a step does to the model or plans for it, as the passes' grammar has it; "" where it only looks."""
    if kind == "shapes" and not row.real:
        return " ".join(form.passes for form in FORMATS.values())
    return calibration(row, FORMATS[kind])[0] if kind in FORMATS else ""


def file_of(row: Row) -> Path:
    """The dense model's file: an export of the zoo, made where it is missing, or one with real weights."""
    if row.real:
        return shared_folder() / "data" / f"{row.model}.onnx"
    return Zoo.default().exported(row.model, EXPORTER)


def kept(row: Row, form: Format) -> Path:
    """Where the compressed form of real weights stays, since the figures look at it."""
    return OUT / f"{row.model}.{form.key}.onnx"


def calibration(row: Row, form: Format) -> tuple[str, Path | None, dict[str, Any]]:
    """The passes, the images and their options that a row is compressed with."""
    if not row.real:
        return form.passes, None, {"samples": SAMPLES}
    prepared = IMAGENET if row.side == 224 else _COCO
    return form.tuned, shared_folder() / "data" / "imagenet" / "train", {**prepared, "samples": 128}


def comparison(row: Row, path: Path, written: Path) -> dict[str, Any]:
    """The outputs before and after: cosines and agreement; of real weights accuracy, too."""
    images, options = None, {"samples": SAMPLES}
    data = shared_folder() / "data"
    if row.real and row.side == 224:
        images, options = data / "imagenet" / "val", {**IMAGENET, "classes": data / "imagenet" / "classes.txt"}
    elif row.real:
        images = data / "coco_mini" / "images"
        options = {**_COCO, "annotations": data / "coco_mini" / "instances.json"}
    found = check(path, written, data=images, data_options=options).comparison
    return {
        "samples": found.samples,
        "cosines": {output.name: output.cosine_mean for output in found.outputs},
        "nonfinite": sum(output.nonfinite for output in found.outputs),
        "agreement": found.top1_agreement,
        "dense": found.reference_metrics or {},
        "compressed": found.candidate_metrics or {},
    }


def formed(sites: Iterable[Mapping[str, float]], form: Format) -> dict[str, float]:
    """Totals over the sites that have the format: both its bits a weight and its share of a dense product's work."""
    chosen = [site for site in sites if _has(site, form)]
    names = ("parameters", "stored_parameters", "dense_macs", "sparse_macs", "bit_operations")
    return {"sites": len(chosen), **{name: math.fsum(site[name] for site in chosen) for name in names}}


def _has(site: Mapping[str, float], form: Format) -> bool:
    bits = 32 * site["stored_parameters"] / site["parameters"]
    work = site["bit_operations"] / (32**2 * max(1, site["dense_macs"]))
    return abs(bits - form.bits) < _STEP and (not site["dense_macs"] or abs(work - form.work) < _STEP)


def codes(weights: Iterable[Weight], rule: str) -> dict[str, Any]:
    """What the independent checker says of the stored codes; `broken` names the weights that break the pattern."""
    stored = [weight for weight in weights if weight.element]
    sparse = [weight for weight in stored if rule in weight.rules]
    return {
        "quantised": len(stored),
        "follow": len(sparse),
        "dense": [weight.name for weight in stored if rule not in weight.rules],
        "four_bits": sum(weight.four_bits for weight in stored),
        "off_grid": [weight.name for weight in stored if not weight.on_grid],
    }


def left_out(rows: Iterable[Any]) -> dict[str, int]:
    """How many decisions of the passes left something as it is, by reason."""
    found: dict[str, int] = {}
    for row in rows:
        if row.skipped:
            found[row.reason] = found.get(row.reason, 0) + 1
    return dict(sorted(found.items()))


def table_elements(model: Model, structure: Structure) -> int:
    """Elements of float constants that no product reads and that are more than vectors: position tables and masks."""
    weights = {site.weight.name for site in structure.sites}
    others = [c for c in model.constants() if c.name not in weights and sum(side > 1 for side in c.shape) > 1]
    floats = [(c, natural(type_name(c))) for c in others]
    return sum(math.prod(c.shape) for c, fmt in floats if fmt is not None and fmt.stored)


def commit() -> str:
    """The last commit that changed what compresses, with a mark where files differ from it."""
    code = ("gpusq_onnx", "passes")
    done = subprocess.run(["git", "log", "-1", "--format=%h", "--", *code], cwd=ROOT, capture_output=True)
    changed = subprocess.run(["git", "status", "--porcelain", "--", *code], cwd=ROOT, capture_output=True)
    return (done.stdout.decode().strip() or "unknown") + ("-dirty" if changed.stdout.strip() else "")


def _verdict(path: Path, harness: Path, *, build: bool) -> dict[str, Any]:
    try:
        found: Verdict = parser_verdict(path, harness=harness, build=build)
    except EnvironmentLacking as error:
        return {"ok": None, "built": False, "errors": [error.what], "library": ""}
    return {key: value for key, value in asdict(found).items() if key != "seconds"}


def carried_out(row: Row, kind: str, harness: Path) -> dict[str, Any]:
    """The record of one step: `kind` is "shapes" or a format's key."""
    if kind == "shapes":
        return shapes(row, harness)
    with Scratch() as scratch:
        return compressed(row, FORMATS[kind], harness, scratch)
