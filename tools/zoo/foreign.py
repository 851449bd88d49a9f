"""Vision transformers that this project was not built with, random weights, exported to ONNX: the foreign corpus.

    python foreign.py --list
    python foreign.py FOLDER [MODEL_FORM ...]    e.g. segformer_legacy17; without names, all that are not there yet

Run by the environment of the zoo (`tools.zoo.exports`), which alone has timm and transformers. A row of `MODELS` is a
family: how to build it and its inputs. Widths are real where it costs nothing; depths are cut so that an export takes
seconds. A form is an exporter and what is done after: `legacy17`, `dynamo` (its default: newest opset, external data),
`dynamic` (legacy, batch open), `half` (legacy, float16), `sim` and `slim` (legacy, through onnxsim and onnxslim). An
export that fails leaves MODEL_FORM.txt with the reason.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(os.environ.get("GPUSQ_SHARED") or Path(__file__).parents[3] / "shared") / "zoo"))

Build = Callable[[], Any]


def timm_model(name: str, **options: Any) -> Build:
    """A timm model, not pretrained."""

    def build() -> Any:
        import timm

        timm.layers.set_fused_attn(False)
        return timm.create_model(name, pretrained=False, **options)

    return build


def hf_model(kind: str, output: str, *, config: str, fields: dict[str, Any]) -> Build:
    """A transformers model `kind` of the configuration `config` with `fields`; `output` names the fields it gives."""

    def build() -> Any:
        import torch
        import transformers

        class One(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                made = getattr(transformers, config)(**fields)
                made._attn_implementation = "eager"
                self.model = getattr(transformers, kind)(made)

            def forward(self, *inputs: Any) -> Any:
                found = self.model(*inputs)
                fields = output.split()
                return tuple(getattr(found, field) for field in fields) if len(fields) > 1 else getattr(found, output)

        return One()

    return build


def images(*shape: int) -> Callable[[], tuple[Any, ...]]:
    """One batch of noise."""

    def make() -> tuple[Any, ...]:
        import torch

        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)

    return make


IMAGE = images(1, 3, 224, 224)
PLAIN = ("legacy17", "dynamo")
VIT = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}

MODELS: dict[str, tuple[Build, Callable[[], tuple[Any, ...]], tuple[str, ...]]] = {
    "beit": (timm_model("beit_base_patch16_224", depth=2), IMAGE, ("legacy17", "dynamo", "dynamic")),
    "eva02": (timm_model("eva02_tiny_patch14_224", depth=2), IMAGE, PLAIN),
    "dinov3": (timm_model("vit_small_patch16_dinov3", depth=2, img_size=224), IMAGE, PLAIN),
    "swinv2": (timm_model("swinv2_tiny_window8_256", depths=(1, 1, 2, 1)), images(1, 3, 256, 256), PLAIN),
    "segformer": (
        hf_model(
            "SegformerForSemanticSegmentation",
            "logits",
            config="SegformerConfig",
            fields={"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 160, 256], "num_labels": 150},
        ),
        IMAGE,
        ("legacy17", "dynamo", "dynamic", "sim", "slim", "half"),
    ),
    "pvt": (timm_model("pvt_v2_b1", depths=(1, 1, 1, 1)), IMAGE, ("legacy17",)),
    "pit": (timm_model("pit_s_224", depth=(1, 1, 1)), IMAGE, PLAIN),
    "twins": (timm_model("twins_svt_small", depths=(1, 1, 2, 1)), IMAGE, PLAIN),
    "davit": (timm_model("davit_tiny", depths=(1, 1, 1, 1)), IMAGE, PLAIN),
    "xcit": (timm_model("xcit_tiny_12_p16_224", depth=2), IMAGE, PLAIN),
    "cait": (timm_model("cait_xxs24_224", depth=2), IMAGE, PLAIN),
    "levit": (timm_model("levit_192", depth=(1, 1, 1)), IMAGE, PLAIN),
    "mvitv2": (timm_model("mvitv2_tiny"), IMAGE, PLAIN),
    "maxvit": (timm_model("maxvit_tiny_rw_224", depths=(1, 1, 1, 1)), IMAGE, ("legacy17",)),
    "mobilevit": (timm_model("mobilevit_s"), images(1, 3, 256, 256), PLAIN),
    "efficientvit": (timm_model("efficientvit_b1"), IMAGE, ("legacy17",)),
    "hiera": (timm_model("hiera_tiny_224", stages=(1, 1, 2, 1)), IMAGE, PLAIN),
    "sam_encoder": (timm_model("samvit_base_patch16_224", depth=3, global_attn_indexes=(2,)), IMAGE, PLAIN),
    "siglip": (timm_model("vit_base_patch16_siglip_224", depth=2), IMAGE, PLAIN),
    "deit3": (timm_model("deit3_small_patch16_224", depth=2), IMAGE, ("half", "sim", "slim")),
    "cvt": (
        hf_model("CvtForImageClassification", "logits", config="CvtConfig", fields={}),
        IMAGE,
        ("legacy17",),
    ),
    "rtdetr": (
        hf_model(
            "RTDetrV2ForObjectDetection",
            "logits pred_boxes",
            config="RTDetrV2Config",
            fields={"decoder_layers": 2, "num_queries": 50, "encoder_layers": 1},
        ),
        images(1, 3, 320, 320),
        ("legacy17", "dynamo"),
    ),
    "videomae": (
        hf_model(
            "VideoMAEForVideoClassification", "logits", config="VideoMAEConfig",
            fields={**VIT, "num_frames": 4, "image_size": 112, "num_labels": 400},
        ),
        images(1, 4, 3, 112, 112),
        ("legacy17",),
    ),
    "vitpose": (
        hf_model(
            "VitPoseForPoseEstimation", "heatmaps", config="VitPoseConfig",
            fields={"backbone_config": {"model_type": "vitpose_backbone", "hidden_size": 192, "num_hidden_layers": 2,
                                        "num_attention_heads": 3}},
        ),
        images(1, 3, 256, 192),
        ("legacy17",),
    ),
    "depth_anything": (
        hf_model(
            "DepthAnythingForDepthEstimation", "predicted_depth", config="DepthAnythingConfig",
            fields={"backbone_config": {"model_type": "dinov2", "hidden_size": 192, "num_hidden_layers": 4,
                                        "num_attention_heads": 3, "image_size": 224, "reshape_hidden_states": False,
                                        "out_indices": [1, 2, 3, 4]},
                    "reassemble_hidden_size": 192},
        ),
        IMAGE,
        ("legacy17",),
    ),
    "trocr_encoder": (
        hf_model("DeiTModel", "last_hidden_state", config="DeiTConfig", fields={**VIT, "image_size": 224}),
        IMAGE,
        PLAIN,
    ),
    "clip_vision": (
        hf_model(
            "CLIPVisionModelWithProjection", "image_embeds", config="CLIPVisionConfig",
            fields={**VIT, "patch_size": 16, "image_size": 224, "projection_dim": 128},
        ),
        IMAGE,
        PLAIN,
    ),
    "dinov2": (
        hf_model("Dinov2ForImageClassification", "logits", config="Dinov2Config",
                 fields={**VIT, "image_size": 224, "num_labels": 1000}),
        IMAGE,
        ("legacy17", "dynamic"),
    ),
}  # fmt: skip


def perturb(model: Any) -> None:
    """Spread one-dimensional parameters: exporters merge or drop the equal zeros of an untrained model."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def export(name: str, form: str, folder: Path) -> None:
    """Write NAME_FORM.onnx into `folder`."""
    import torch

    torch.manual_seed(0)
    build, inputs, _ = MODELS[name]
    model, feed = build().eval(), inputs()
    perturb(model)
    path = folder / f"{name}_{form}.onnx"
    if form == "half":
        model, feed = model.half(), tuple(x.half() for x in feed)
    names = ["pixel_values"]
    with torch.no_grad():
        if form == "dynamo":
            torch.onnx.export(model, feed, str(path), dynamo=True, input_names=names, verbose=False)
        else:
            axes = {"pixel_values": {0: "batch"}} if form == "dynamic" else None
            torch.onnx.export(
                model, feed, str(path), dynamo=False, opset_version=17, input_names=names, dynamic_axes=axes
            )
    if form == "sim":
        import onnx
        import onnxsim

        onnx.save(onnxsim.simplify(str(path))[0], path)
    if form == "slim":
        import onnx
        import onnxslim

        onnx.save(onnxslim.slim(str(path)), path)


def main() -> None:
    """See the module's text."""
    import torchvision_cpu

    every = [f"{name}_{form}" for name, (_, _, forms) in MODELS.items() for form in forms]
    if sys.argv[1:] == ["--list"]:
        print("\n".join(every))
        return
    torchvision_cpu.preload()
    folder, wanted = Path(sys.argv[1]), sys.argv[2:] or every
    folder.mkdir(parents=True, exist_ok=True)
    for word in wanted:
        name, _, form = word.rpartition("_")
        path, reason = folder / f"{word}.onnx", folder / f"{word}.txt"
        if path.exists() or reason.exists():
            continue
        try:
            export(name, form, folder)
            print("exported", word, flush=True)
        except Exception as error:
            path.unlink(missing_ok=True)
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason.write_text(f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})\n")
            print("FAILED", word, type(error).__name__, str(error)[:150].replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
