"""gpusq-onnx: 2:4 sparsity and INT8 quantisation for exported vision transformers (GPUSQ-ViT, CVPR 2023)."""

__version__ = "0.1.0"
