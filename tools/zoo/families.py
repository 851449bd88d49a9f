"""The families of the foreign corpus: how to build each, what it reads, and the forms in which it is exported.

A row of `MODELS` is a family. Widths are real where it costs nothing; depths are cut so that an export takes seconds.
"""

import numpy as np

from tools.zoo.family import (
    Family,
    always,
    hf_model,
    ids,
    image,
    noise,
    pixels,
    sam_decoder,
    timm_model,
    torchvision_model,
)

VIT = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}
TEXT = {**VIT, "vocab_size": 1000, "max_position_embeddings": 32, "projection_dim": 128, "eos_token_id": 999}
CLIP_VISION = {**VIT, "patch_size": 16, "image_size": 224, "projection_dim": 128}
TWIN_AXES = {"input_ids": {1: "tokens"}}
SAM2 = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model", "image_size": [256, 256], "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [96, 192, 384, 768], "num_attention_heads_per_stage": [1, 2, 4, 8],
            "global_attention_blocks": [3],
        },
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
    },
    "prompt_encoder_config": {"image_size": 256},
}  # fmt: skip
POINTS = {
    "input_points": lambda rng, count: rng.uniform(0, 255, (count, 1, 2, 2)).astype(np.float32),
    "input_labels": ids(2, 1, 2),
}

SWIN = {
    "model_type": "swin", "depths": [1, 1, 2, 1], "embed_dim": 48, "num_heads": [2, 4, 8, 16], "image_size": 256,
    "window_size": 8, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
RESNET = {
    "model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
QUERIES = "class_queries_logits masks_queries_logits"

MODELS: dict[str, Family] = {
    "beit": Family(
        timm_model("beit_base_patch16_224", depth=2), ("legacy17", "dynamo", "dynamic", "half", "attention")
    ),
    "eva02": Family(timm_model("eva02_tiny_patch14_224", depth=2)),
    "dinov3": Family(
        timm_model("vit_small_patch16_dinov3", depth=2, img_size=224), ("legacy17", "dynamo", "attention")
    ),
    "swinv2": Family(
        timm_model("swinv2_tiny_window8_256", depths=(1, 1, 2, 1)), ("legacy17", "dynamo", "dynamic", "half"),
        image(256),
    ),
    "swinv2_torchvision": Family(torchvision_model("swin_v2_t"), ("legacy17", "dynamo"), image(256)),
    "vit_torchvision": Family(
        torchvision_model(
            "VisionTransformer", image_size=224, patch_size=16, num_layers=3, num_heads=6, hidden_dim=384, mlp_dim=1536
        ),
        ("legacy17", "dynamic", "half", "ort"),
    ),
    "segformer": Family(
        hf_model(
            "SegformerForSemanticSegmentation", "logits", config="SegformerConfig",
            fields={"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 160, 256], "num_labels": 150},
        ),
        ("legacy17", "dynamo", "dynamic", "sim", "slim", "half", "free", "ort"),
    ),
    "pvt": Family(timm_model("pvt_v2_b1", depths=(1, 1, 1, 1)), ("legacy17",)),
    "pit": Family(timm_model("pit_s_224", depth=(1, 1, 1))),
    "twins": Family(timm_model("twins_svt_small", depths=(1, 1, 2, 1))),
    "davit": Family(timm_model("davit_tiny", depths=(1, 1, 1, 1))),
    "xcit": Family(timm_model("xcit_tiny_12_p16_224", depth=2)),
    "cait": Family(timm_model("cait_xxs24_224", depth=2), ("legacy17", "dynamo", "dynamic")),
    "levit": Family(timm_model("levit_192", depth=(1, 1, 1)), ("legacy17", "dynamo", "dynamic")),
    "mvitv2": Family(timm_model("mvitv2_tiny")),
    "maxvit": Family(timm_model("maxvit_tiny_rw_224", depths=(1, 1, 1, 1)), ("legacy17",)),
    "mobilevit": Family(timm_model("mobilevit_s"), ("legacy17", "dynamo", "ort"), image(256)),
    "efficientformerv2": Family(timm_model("efficientformerv2_s0"), ("dynamo",)),
    "tinyvit": Family(timm_model("tiny_vit_5m_224"), ("legacy17",)),
    "efficientvit": Family(timm_model("efficientvit_b1"), ("legacy17",)),
    "botnet": Family(timm_model("botnet26t_256"), ("half",), image(256)),
    "hiera": Family(timm_model("hiera_tiny_224", stages=(1, 1, 2, 1))),
    "sam_encoder": Family(timm_model("samvit_base_patch16_224", depth=3, global_attn_indexes=(2,))),
    "sam_decoder": Family(
        sam_decoder, ("legacy17", "dynamo", "dynamic"), {"image_embeddings": noise(256, 64, 64), **POINTS}
    ),
    "sam2_encoder": Family(
        hf_model("Sam2VisionModel", "last_hidden_state", config="Sam2VisionConfig", fields=SAM2["vision_config"]),
        ("legacy17", "dynamo", "dynamic"),
        image(256),
    ),
    "sam2": Family(
        hf_model(
            "Sam2Model", "iou_scores pred_masks", config="Sam2Config", fields=SAM2,
            names=("pixel_values", "input_points", "input_labels"),
        ),
        ("legacy17", "dynamo"),
        {**image(256), **POINTS},
    ),
    "siglip": Family(
        timm_model("vit_base_patch16_siglip_224", depth=2), ("legacy17", "dynamo", "dynamic", "half", "attention")
    ),
    "siglip2": Family(
        hf_model(
            "Siglip2VisionModel", "pooler_output", config="Siglip2VisionConfig",
            fields={**VIT, "num_patches": 196, "patch_size": 16},
            names=("pixel_values", "pixel_attention_mask", "spatial_shapes"),
        ),
        ("legacy17", "dynamo"),
        {"pixel_values": noise(196, 768), "pixel_attention_mask": always(*[1] * 196), "spatial_shapes": always(14, 14)},
    ),
    "deit3": Family(timm_model("deit3_small_patch16_224", depth=2), ("half", "sim", "slim", "free", "inputs")),
    "cvt": Family(
        hf_model("CvtForImageClassification", "logits", config="CvtConfig", fields={}), ("legacy17",)
    ),
    "rtdetr": Family(
        hf_model(
            "RTDetrV2ForObjectDetection", "logits pred_boxes", config="RTDetrV2Config",
            fields={"decoder_layers": 2, "num_queries": 50, "encoder_layers": 1},
        ),
        ("legacy17", "dynamo", "dynamic"),
        image(320),
    ),
    "videomae": Family(
        hf_model(
            "VideoMAEForVideoClassification", "logits", config="VideoMAEConfig",
            fields={**VIT, "num_frames": 4, "image_size": 112, "num_labels": 400},
        ),
        ("legacy17", "dynamo", "dynamic"),
        {"pixel_values": noise(4, 3, 112, 112)},
    ),
    "vitpose": Family(
        hf_model(
            "VitPoseForPoseEstimation", "heatmaps", config="VitPoseConfig",
            fields={"backbone_config": {"model_type": "vitpose_backbone", "hidden_size": 192, "num_hidden_layers": 2,
                                        "num_attention_heads": 3}},
        ),
        ("legacy17",),
        {"pixel_values": noise(3, 256, 192)},
    ),
    "depth_anything": Family(
        hf_model(
            "DepthAnythingForDepthEstimation", "predicted_depth", config="DepthAnythingConfig",
            fields={"backbone_config": {"model_type": "dinov2", "hidden_size": 192, "num_hidden_layers": 4,
                                        "num_attention_heads": 3, "image_size": 224, "reshape_hidden_states": False,
                                        "out_indices": [1, 2, 3, 4]},
                    "reassemble_hidden_size": 192},
        ),
        ("legacy17", "dynamic"),
    ),
    "trocr_encoder": Family(
        hf_model("DeiTModel", "last_hidden_state", config="DeiTConfig", fields={**VIT, "image_size": 224}),
    ),
    "clip_vision": Family(
        hf_model("CLIPVisionModelWithProjection", "image_embeds", config="CLIPVisionConfig", fields=CLIP_VISION),
        ("legacy17", "dynamo", "ort"),
    ),
    "clip_text": Family(
        hf_model("CLIPTextModelWithProjection", "text_embeds", config="CLIPTextConfig", fields=TEXT),
        ("legacy17", "dynamo", "free"),
        {"input_ids": ids(1000, 32)},
        TWIN_AXES,
    ),
    "clip": Family(
        hf_model(
            "CLIPModel", "logits_per_image text_embeds image_embeds", config="CLIPConfig",
            fields={"text_config": TEXT, "vision_config": CLIP_VISION, "projection_dim": 128},
            names=("input_ids", "pixel_values", "attention_mask"),
        ),
        ("legacy17", "dynamo", "dynamic", "half"),
        {"input_ids": ids(1000, 32), **image(224), "attention_mask": always(*[1] * 32)},
    ),
    "dinov2": Family(
        hf_model("Dinov2ForImageClassification", "logits", config="Dinov2Config",
                 fields={**VIT, "image_size": 224, "num_labels": 1000}),
        ("legacy17", "dynamic", "attention", "ort"),
    ),
    "crossvit": Family(timm_model("crossvit_tiny_240"), ("legacy17",), image(240)),
    "tnt": Family(timm_model("tnt_s_patch16_224", depth=2), ("dynamo",)),
    "focalnet": Family(timm_model("focalnet_tiny_srf"), ("legacy17",)),
    "mixer": Family(timm_model("mixer_s16_224"), ("dynamic",)),
    "yolos": Family(
        hf_model(
            "YolosForObjectDetection", "logits pred_boxes", config="YolosConfig",
            fields={**VIT, "image_size": [224, 224], "num_detection_tokens": 20},
        ),
        ("legacy17", "dynamo", "half", "dynamic"),
    ),
    "maskformer": Family(
        hf_model(
            "MaskFormerForInstanceSegmentation", QUERIES, config="MaskFormerConfig",
            fields={"backbone_config": SWIN, "num_queries": 20},
        ),
        ("legacy17", "dynamo"),
        image(256),
    ),
    "mask2former": Family(
        hf_model(
            "Mask2FormerForUniversalSegmentation", QUERIES, config="Mask2FormerConfig",
            fields={"backbone_config": SWIN, "num_queries": 20, "decoder_layers": 3, "encoder_layers": 1,
                    "feature_size": 128, "mask_feature_size": 128, "hidden_dim": 128, "encoder_feedforward_dim": 256,
                    "dim_feedforward": 512},
        ),
        ("dynamo", "dynamic"),
        image(256),
    ),
    "eomt": Family(
        hf_model(
            "EomtForUniversalSegmentation", QUERIES, config="EomtConfig",
            fields={**VIT, "num_hidden_layers": 4, "image_size": 224, "num_queries": 20, "num_blocks": 2},
        ),
        ("legacy17",),
    ),
    "deformable_detr": Family(
        hf_model(
            "DeformableDetrForObjectDetection", "logits pred_boxes", config="DeformableDetrConfig",
            fields={"backbone_config": RESNET, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 50},
        ),
        ("dynamo", "dynamic"),
        image(320),
    ),
    "conditional_detr": Family(
        hf_model(
            "ConditionalDetrForObjectDetection", "logits pred_boxes", config="ConditionalDetrConfig",
            fields={
                "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False,
                "backbone_config": RESNET, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 50,
            },
        ),
        ("legacy17",),
        image(320),
    ),
    "dfine": Family(
        hf_model(
            "DFineForObjectDetection", "logits pred_boxes", config="DFineConfig",
            fields={"decoder_layers": 2, "num_queries": 50, "encoder_layers": 1},
        ),
        ("legacy17",),
        image(320),
    ),
    "keras_vit": Family(None, ("graph",), {"input": pixels(224, 224, 3)}),
}  # fmt: skip
EXPORTS = [f"{name}_{form}" for name, family in MODELS.items() for form in family.forms]
