"""What the paper's tables compare: models and formats, what is published of them, and where each number is from.

The paper (Yu, Chen, Gan, Fan, CVPR 2023, arXiv 2305.10727) could not be read whole where this was written: of its own
numbers there are the ranges of its abstract and, for Table 1, the ratios that docs/method.md cites. Its printed Params
and FLOPs in millions and 10⁹ are not at hand, so none is repeated here. Beside our counts are those that the models'
own authors publish, which a baseline row can only repeat.

The list of the 18 is put together from the models whose dense accuracy the paper starts from: eight classifiers, seven
detectors, three segmenters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_ENDS = "head=true,patch=true"
_MAGNITUDE = f"{_ENDS},method=magnitude"

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "abstract": "the paper's abstract (arXiv 2305.10727)",
        "method": "docs/method.md and the project's notes on Table 1",
        "timm": "huggingface/pytorch-image-models, results/benchmark-infer-amp-nchw-pt110-cu113-rtx3090.csv, "
        "columns param_count and infer_gmacs",
        "swin-detection": "SwinTransformer/Swin-Transformer-Object-Detection, README.md (1280 x 800 pixels)",
        "swin-segmentation": "SwinTransformer/Swin-Transformer-Semantic-Segmentation, README.md (2048 x 512 pixels)",
        "deformable": "fundamentalvision/Deformable-DETR, README.md (about 1333 x 800 pixels)",
    }
)
"""Where a published number is from, by the word that a row has."""


@dataclass(frozen=True)
class Format:
    """One of the paper's two compressed forms.

    Attributes:
        key, name: of files; of tables.
        bits: that a kept weight and its share of the metadata take, an element of the dense weight.
        work: of what a dense FP32 multiply-accumulate costs in the paper's FLOPs, what one of these does: see
            `columns.paper_flops`.
        rule: the pattern, as `tools.zoo.checker` spells it.
        params, flops: how many times smaller the paper's columns are: (lowest, highest) of Table 1.
        passes: without training; magnitude, both ends, as in the preset gpusq-paper.
        tuned: the same for models with real weights: SparseGPT on images.
    """

    key: str
    name: str
    bits: float
    work: float
    rule: str
    params: float
    flops: tuple[float, float]
    passes: str
    tuned: str


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        row.key: row
        for row in (
            Format(
                "int8", "INT8, 2:4", 5.0, 1 / 32, "2:4", 6.4, (31, 32),
                f"patch-matmul,prune24{{{_MAGNITUDE}}},qdq-int8{{{_ENDS}}}",
                "prune24{method=sparsegpt},qdq-int8",
            ),
            Format(
                "int4", "INT4, 4:8 in pairs", 2.5, 1 / 64, "4:8pair", 12.7, (62, 64),
                f"patch-matmul,prune48pair{{{_MAGNITUDE}}},qdq{{{_ENDS},scheme=w4a8}}",
                "prune48pair{method=sparsegpt},qdq{scheme=w4a8}",
            ),
        )
    }
)  # fmt: skip
"""Params ratios are the ends of the abstract's range, 6.4 and 12.7; FLOPs ratios are Table 1's by docs/method.md."""


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        model: the zoo's name, or the file's for real weights; the name of its results.
        table: of the paper, 1, 3 or 4; 0: real weights, in none of them.
        name: as tables call it.
        side: of the square image, pixels.
        params, macs: what is published of the dense one, in millions and 10⁹ multiply-accumulates; None: nothing is.
        source: a key of `SOURCES`.
        differs: how our model is another than the published one, or is counted at another size; "": it is the same.
        real: trained weights, so that accuracy is worth a measurement.
    """

    model: str
    table: int
    name: str
    side: int
    params: float | None = None
    macs: float | None = None
    source: str = ""
    differs: str = ""
    real: bool = False


_SIZE = "512 x 512, published at 1280 x 800, 3.9 times the pixels"
_TORCHVISION = f"torchvision's heads, not mmdetection's; {_SIZE}"
_CASCADE = f"box heads of two Linears and one mask head, not four Convs and a Linear and three mask heads; {_SIZE}"
_UPERNET = "512 x 512, published at 2048 x 512, four times the pixels"
_SHAPE = "512 x 512, published at about 1333 x 800, 4.1 times the pixels"

ROWS: tuple[Row, ...] = (
    Row("deit_tiny_224", 1, "DeiT-Tiny", 224, 5.72, 1.26, "timm"),
    Row("deit_small_224", 1, "DeiT-Small", 224, 22.05, 4.61, "timm"),
    Row("deit_base_224", 1, "DeiT-Base", 224, 86.57, 17.58, "timm"),
    Row("deit_base_384", 1, "DeiT-Base, 384", 384, 86.86, 55.54, "timm"),
    Row("swin_tiny_224", 1, "Swin-Tiny", 224, 28.29, 4.51, "timm"),
    Row("swin_small_224", 1, "Swin-Small", 224, 49.61, 8.77, "timm"),
    Row("swin_base_224", 1, "Swin-Base", 224, 87.77, 15.47, "timm"),
    Row("swin_base_384", 1, "Swin-Base, 384", 384, 87.90, 47.19, "timm"),
    Row("mask_rcnn_swin_tiny", 3, "Mask R-CNN, Swin-Tiny", 512, 48, 267, "swin-detection", _TORCHVISION),
    Row("mask_rcnn_swin_small", 3, "Mask R-CNN, Swin-Small", 512, 69, 359, "swin-detection", _TORCHVISION),
    Row("cascade_mask_rcnn_swin_tiny", 3, "Cascade Mask R-CNN, Swin-Tiny", 512, 86, 745, "swin-detection", _CASCADE),
    Row("cascade_mask_rcnn_swin_small", 3, "Cascade Mask R-CNN, Swin-Small", 512, 107, 838, "swin-detection", _CASCADE),
    Row("cascade_mask_rcnn_swin_base", 3, "Cascade Mask R-CNN, Swin-Base", 512, 145, 982, "swin-detection", _CASCADE),
    Row("detr_r50", 3, "DETR, ResNet-50", 512, 41, 86, "deformable", _SHAPE),
    Row("deformable_detr_r50", 3, "Deformable DETR, ResNet-50", 512, 40, 173, "deformable", _SHAPE),
    Row("upernet_swin_tiny", 4, "UPerNet, Swin-Tiny", 512, 60, 945, "swin-segmentation", _UPERNET),
    Row("upernet_swin_small", 4, "UPerNet, Swin-Small", 512, 81, 1038, "swin-segmentation", _UPERNET),
    Row("upernet_swin_base", 4, "UPerNet, Swin-Base", 512, 121, 1188, "swin-segmentation", _UPERNET),
)  # fmt: skip
"""The 18 of Tables 1, 3 and 4."""

REAL: tuple[Row, ...] = (
    Row("vit_tiny_imagenet", 0, "ViT-Tiny (DeiT-Tiny's architecture)", 224, real=True),
    Row("deimv2_atto", 0, "DEIMv2-Atto (a COCO detector)", 320, real=True),
)
"""Models with trained weights, of which accuracy is measured."""

CAM = "vit_tiny_imagenet"
"""The one whose activation maps are drawn."""

ORDER = (
    "deit_tiny_224 swin_tiny_224 deit_small_224 vit_tiny_imagenet swin_small_224 deit_base_224 swin_base_224 "
    "deimv2_atto deit_base_384 swin_base_384 upernet_swin_tiny detr_r50 deformable_detr_r50 mask_rcnn_swin_tiny "
    "mask_rcnn_swin_small upernet_swin_small cascade_mask_rcnn_swin_tiny cascade_mask_rcnn_swin_small "
    "upernet_swin_base cascade_mask_rcnn_swin_base"
).split()
"""In which order they are run: small ones first."""


def row_of(model: str) -> Row:
    """The row of a model's name. Raises KeyError with the names that there are."""
    found = {row.model: row for row in (*ROWS, *REAL)}
    if model not in found:
        raise KeyError(f"no row is named {model!r}; there are: {' '.join(found)}")
    return found[model]
