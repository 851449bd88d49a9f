"""Preprocessing by name: `--data-preset NAME`, one row a family of models, with where it is written down.

A row gives values of `options.DataOptions`; what the caller gives beside it wins. `crop_ratio` is timm's crop_pct: the
resize follows from the input's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class DataPreset:
    """One row: the values, the models that want them, and the source."""

    values: Mapping[str, Any]
    models: str
    source: str


def _row(models: str, source: str, mean: object, std: object, **more: object) -> DataPreset:
    return DataPreset(MappingProxyType({"mean": mean, "std": std, **more}), models, source)


_TIMM = "timm/data/constants.py and the model's default_cfg"
_ROWS = {
    "imagenet": _row(
        "torchvision's classifiers",
        "torchvision.transforms.ImageClassification",
        IMAGENET_MEAN,
        IMAGENET_STD,
        interpolation="bilinear",
        crop_ratio=0.875,
    ),
    "timm": _row("timm's default", _TIMM, IMAGENET_MEAN, IMAGENET_STD, interpolation="bicubic", crop_ratio=0.875),
    "deit": _row("DeiT and Swin of timm", _TIMM, IMAGENET_MEAN, IMAGENET_STD, interpolation="bicubic", crop_ratio=0.9),
    "vit": _row("ViT (augreg) of timm", _TIMM, 0.5, 0.5, interpolation="bicubic", crop_ratio=0.9),
    "clip": _row("CLIP", "openai/CLIP clip.py, _transform", CLIP_MEAN, CLIP_STD, interpolation="bicubic", crop_ratio=1),
    "siglip": _row("SigLIP", "transformers SiglipImageProcessor", 0.5, 0.5, interpolation="bicubic", fit="stretch"),
    "dinov2": _row(
        "DINOv2",
        "facebookresearch/dinov2 make_classification_eval_transform",
        IMAGENET_MEAN,
        IMAGENET_STD,
        interpolation="bicubic",
        crop_ratio=0.875,
    ),
    "coco-stretch": _row(
        "RT-DETR, D-FINE, DEIM", "lyuwenyu/RT-DETR, val_dataloader", 0, 1, interpolation="bilinear", fit="stretch"
    ),
    "segformer": _row(
        "SegFormer",
        "transformers SegformerImageProcessor",
        IMAGENET_MEAN,
        IMAGENET_STD,
        interpolation="bilinear",
        fit="stretch",
    ),
}
PRESETS: Mapping[str, DataPreset] = MappingProxyType(_ROWS)
