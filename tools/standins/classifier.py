"""The stand-in for Swin: two stages on CIFAR-10, 0.55 M parameters; scored by top-1.

Trained on the first 45 000 training images with flips and shifts; the last 5000 are held out, for choosing.
Data: CIFAR-10 (Krizhevsky 2009), as train.parquet and test.parquet with an image's bytes and its label.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tools.ablation.vit_cifar10 import HELD_OUT, batches, images_and_labels
from tools.standins.swin import Shape, Swin
from tools.standins.training import Recipe, train

BATCH = 125
RECIPE = Recipe(epochs=10, steps=360, lr=2e-3)


def trained(data: Path, folder: Path) -> Swin:
    """The model, from the last checkpoint in the folder on."""
    torch.manual_seed(RECIPE.seed)
    model = Swin(Shape())
    images, labels = images_and_labels(data, "train")
    images, labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    train(model, lambda generator: batches(images, labels, BATCH, generator), loss, RECIPE, folder / "swin.training.pt")
    return model


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, smoothed by 0.1."""
    return nn.functional.cross_entropy(model(images.float()), labels, label_smoothing=0.1)
