"""Packed bytes of the paper's backbones: the sizes that the paper claims, as files, and every model back byte for byte.

The formats are those of the preset `gpusq-paper` without its training, which moves values and no sizes. Random weights:
biases that an exporter left at zero compress to nothing, so the table also has the size without any compression of
the rest. Times are compared with reading and hashing the same file, which both directions must do.
"""

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import onnx
import pytest
from acceptance_table import Table, gpusq

from gpusq_onnx.graph.pack.container import ContainerReader
from tools.zoo.checker import ratio, weights_of

pytestmark = pytest.mark.slow

TITLE = "Packed bytes, random weights (TorchScript opset 17)"
COLUMNS = [
    "model", "passes", "FP32 file", "packed", "smaller", "weights", "scales", "the rest", "not compressed",
    "pack / hash", "unpack / hash",
]  # fmt: skip
MAGNITUDE = "method=magnitude"
ENDS = "head=true,patch=true"
INT8 = f"patch-matmul,prune24{{{ENDS},{MAGNITUDE}}},qdq-int8{{{ENDS}}}"
FOUR = f"patch-matmul,prune48pair{{{ENDS},{MAGNITUDE}}},qdq{{{ENDS},scheme=w4a8}}"
DEFAULT = f"prune24{{{MAGNITUDE}}},qdq-int8"
CASES = [
    ("deit_base_224", DEFAULT, "2:4", 5.7),
    ("deit_base_224", INT8, "2:4", 6.2),
    ("deit_base_224", FOUR, "4:8pair", 12.0),
    ("swin_base_224", INT8, "2:4", 6.2),
    ("swin_base_224", FOUR, "4:8pair", 12.0),
]
SIZES = ("tiny", "small", "base")
BACKBONES = [f"{family}_{size}" for family in ("deit", "swin") for size in SIZES]
SWINS = [f"{head}_swin_{size}" for head in ("upernet", "mask_rcnn", "cascade_mask_rcnn") for size in SIZES]
ZOO = [
    *((f"{name}_224", exporter) for name in BACKBONES for exporter in ("legacy17", "dynamo18", "dynamo20")),
    *((name, "legacy17") for name in (*(f"{name}_384" for name in BACKBONES), *SWINS)),
    *((name, "legacy17") for name in ("detr_r50", "deformable_detr_r50")),
]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@pytest.mark.parametrize(("model", "passes", "rule", "least"), CASES)
def test_as_small_as_the_paper_says(
    model: str, passes: str, rule: str, least: float, export: Callable[[str, str], Path], table: Table, tmp_path: Path
) -> None:
    """The ratio, the same bytes back, and the pattern on the stored codes by the independent checker."""
    original, written, packed, back = (
        export(model, "legacy17"),
        *(tmp_path / n for n in ("m.onnx", "m.gpusq", "b.onnx")),
    )
    gpusq("apply", "--passes", passes, "--samples", "2", "-o", str(written), str(original))
    hashing = seconds(lambda: sha256(written.read_bytes()))
    packing = seconds(lambda: gpusq("pack", str(written), "-o", str(packed)))
    contents = ContainerReader(packed).contents
    unpacking = seconds(lambda: unpacked(packed, back))
    assert back.read_bytes() == written.read_bytes()
    found = ratio(packed, original)
    (weights, scales), size = contents.sizes, packed.stat().st_size
    plain = written.stat().st_size - sum(piece.bytes for piece in contents.cut)
    cells = [original.stat().st_size, size]
    parts = [weights, scales, size - weights - scales]
    bare = original.stat().st_size / (weights + scales + plain)
    table.add(
        [
            model, passes, *(f"{n:,}" for n in cells), f"{found:.2f}x", *(f"{n:,}" for n in parts), f"{bare:.2f}x",
            f"{packing / hashing:.1f}", f"{unpacking / hashing:.1f}",
        ],
        model=model, passes=passes, ratio=found, uncompressed=bare, packed=size, weights=weights, scales=scales,
    )  # fmt: skip
    codes = [weight for weight in weights_of(written) if weight.element]
    assert {weight.name for weight in codes} == {weight.name for weight in contents.weights if weight.scaling}
    assert all(weight.on_grid and rule in weight.rules for weight in codes)
    assert rule != "4:8pair" or all(weight.four_bits for weight in codes)
    assert found >= least


@pytest.mark.parametrize(("model", "exporter"), ZOO)
def test_every_model_comes_back(model: str, exporter: str, export: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Default passes, each exporter; what is pruned packs at 5 bits, and only a ConvTranspose is not pruned."""
    written, packed, back = (tmp_path / name for name in ("m.onnx", "m.gpusq", "b.onnx"))
    gpusq("apply", "--passes", DEFAULT, "--samples", "2", "-o", str(written), str(export(model, exporter)))
    gpusq("pack", str(written), "-o", str(packed))
    unpacked(packed, back)
    assert back.read_bytes() == written.read_bytes()
    quantised = [weight for weight in ContainerReader(packed).contents.weights if weight.scaling is not None]
    nodes = onnx.load(written).graph.node
    read = {tensor for node in nodes if node.op_type == "ConvTranspose" for tensor in node.input}
    dense = [weight for weight in quantised if weight.bits != 5]
    assert len(dense) < len(quantised) / 10
    assert all(weight.bits == 8 and any(name.startswith(weight.name) for name in read) for weight in dense)


def unpacked(packed: Path, target: Path) -> None:
    """By the library: the command line prints no JSON."""
    from gpusq_onnx.graph.pack.archive import unpack_model

    unpack_model(packed, target)
