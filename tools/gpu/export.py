"""A timm model with random weights as ONNX, made where it is timed: DeiT-Base is too large to carry.

    python -m tools.gpu.export deit_base_patch16_224 deit_base.onnx

The legacy exporter, opset 17, a free batch. One-dimensional parameters are perturbed first: exporters merge the equal
zeros of an untrained model, which no trained model has. Needs torch, timm and onnx.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def main() -> None:
    """Build, export, print the size."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.export", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="timm's name")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    import timm

    torch.manual_seed(0)
    model = timm.create_model(options.model, pretrained=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    side = model.default_cfg["input_size"][-1]
    partial = options.out.with_suffix(".partial")
    torch.onnx.export(
        model, (torch.zeros(2, 3, side, side),), str(partial), dynamo=False, opset_version=17,
        input_names=["pixel_values"], output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    partial.replace(options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
