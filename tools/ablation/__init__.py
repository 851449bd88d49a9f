"""Table 6 of the paper on a small ViT: which part of the distillation is worth how much."""
