"""Runs a Python file as it is written, with random weights of the right form for those it would download.

python random_weights.py FILE SHARED    run by the environment of the zoo; SHARED: the folder with zoo/

What is replaced: `from_pretrained` of transformers, `pretrained` of timm, `weights` of torchvision.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(sys.argv[2]) / "zoo"))
import torchvision_cpu

torchvision_cpu.preload()

import timm  # noqa: E402  torchvision, which it imports, needs the line above
import torch  # noqa: E402
import transformers as hf  # noqa: E402
from torchvision.models import detection  # noqa: E402

SWIN = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
MODELS: dict[str, Any] = {
    "google/vit-base-patch16-224": lambda: (hf.ViTForImageClassification, hf.ViTConfig(num_labels=1000)),
    "facebook/detr-resnet-50": lambda: (
        hf.DetrForObjectDetection,
        hf.DetrConfig(use_timm_backbone=True, backbone="resnet50", use_pretrained_backbone=False, num_labels=91),
    ),
    "PekingU/rtdetr_v2_r50vd": lambda: (hf.RTDetrV2ForObjectDetection, hf.RTDetrV2Config(num_labels=80)),
    "nvidia/segformer-b0-finetuned-ade-512-512": lambda: (
        hf.SegformerForSemanticSegmentation,
        hf.SegformerConfig(num_labels=150),
    ),
    "openmmlab/upernet-swin-tiny": lambda: (
        hf.UperNetForSemanticSegmentation,
        hf.UperNetConfig(backbone_config=hf.SwinConfig(**SWIN), num_labels=150),
    ),
}
PROCESSORS = {
    "facebook/detr-resnet-50": "DetrImageProcessor",
    "PekingU/rtdetr_v2_r50vd": "RTDetrImageProcessor",
    "nvidia/segformer-b0-finetuned-ade-512-512": "SegformerImageProcessor",
    "openmmlab/upernet-swin-tiny": "SegformerImageProcessor",
}


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its one-dimensional parameters perturbed: exporters merge the equal ones of an untrained model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def build(name: str, **options: Any) -> torch.nn.Module:
    kind, config = MODELS[name]()
    return spread(kind._from_config(config, **options))


for auto in ("ImageClassification", "ObjectDetection", "SemanticSegmentation"):
    getattr(hf, f"AutoModelFor{auto}").from_pretrained = build
hf.AutoImageProcessor.from_pretrained = lambda name: getattr(hf, PROCESSORS[name])()
create_model, mask_rcnn = timm.create_model, detection.maskrcnn_resnet50_fpn_v2
timm.create_model = lambda name, **options: spread(create_model(name, **{**options, "pretrained": False}))
detection.maskrcnn_resnet50_fpn_v2 = lambda weights, **sizes: spread(
    mask_rcnn(weights=None, weights_backbone=None, **sizes)
)
torch.manual_seed(0)
runpy.run_path(sys.argv[1], run_name="__main__")
