"""The ablation's dense model: a small ViT trained from scratch on CIFAR-10, exported once and used by every arm.

    python -m tools.ablation.vit_cifar10 --data ../shared/data/cifar10 --out out/ablation

Width 128, depth 6, 4 heads, patches of 8: 17 tokens, 1.2 M parameters, 20 M MACs an image: what two cores can train,
and train again for every arm. AdamW 2e-3 with one cycle, label smoothing 0.1, flips and shifts by up to 4 pixels; bf16
on a GPU. Deterministic on one machine. The export is the legacy exporter's, opset 17, with a free batch.

Data: CIFAR-10 (Krizhevsky 2009), as train.parquet and test.parquet with an image's bytes and its label.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from tools.vit import SmallVit

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SHIFT = 4  # pixels
INPUT = InputSpec("pixel_values", np.dtype(np.float32), ("batch", 3, 32, 32))
HELD_OUT = 5000  # the last training images: what recipes are tuned on; the test set is scored once


def data_options(folder: Path, part: str, samples: int | None = None) -> DataOptions:
    """The options that open one part ("train" or "test") of the data, for our own verbs as for training here."""
    return DataOptions(path=folder / f"{part}.parquet", samples=samples, mean=MEAN, std=STD)


def images_and_labels(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """float32[n, 3, 32, 32] in [-1, 1] as bfloat16 (8 bits a pixel fit), and int64[n]."""
    read = list(open_source(data_options(folder, part), [INPUT]).batches(1000))
    images = torch.cat([torch.from_numpy(batch.feed[INPUT.name]).to(torch.bfloat16) for batch in read])
    return images, torch.from_numpy(np.concatenate([batch.labels for batch in read if batch.labels is not None]))


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: whole batches in random order, flipped and shifted; what enters repeats the edge."""
    order = torch.randperm(len(labels), generator=generator)
    for index in order[: len(order) // size * size].split(size):
        x = nn.functional.pad(images[index], (SHIFT,) * 4, mode="replicate")
        y, z = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()  # one shift a batch: it is cheap
        x = x[:, :, y : y + 32, z : z + 32]
        flip = torch.rand(size, generator=generator) < 0.5
        yield torch.where(flip[:, None, None, None], x.flip(3), x), labels[index]


def train(images: Tensor, labels: Tensor, *, epochs: int, batch: int, seed: int, device: torch.device) -> SmallVit:
    """The trained model, on the CPU, in evaluation mode; prints a line an epoch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SmallVit(width=128, depth=6, heads=4, patch=8).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    began = time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for x, y in batches(images, labels, batch, generator):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(model(x.to(device).float()), y.to(device))
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean = total / (len(labels) // batch)
        print(f"epoch {epoch + 1}/{epochs}: loss {mean:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    return model.cpu().eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1, 0..1."""
    with torch.inference_mode():
        right = sum(
            int((model(x.float()).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return right / len(labels)


def export(model: nn.Module, path: Path) -> None:
    """One ONNX file, opset 17, batch free."""
    torch.onnx.export(
        model, (torch.zeros(2, 3, 32, 32),), str(path), dynamo=False, opset_version=17,
        input_names=["pixel_values"], output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip


def make(data: Path, folder: Path, *, epochs: int = 12, batch: int = 125, seed: int = 0, device: str = "") -> None:
    """Train and write FOLDER/dense.onnx; print what it reaches on held-out training images and on the test set."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    images, labels = images_and_labels(data, "train")
    model = train(
        images[:-HELD_OUT], labels[:-HELD_OUT], epochs=epochs, batch=batch, seed=seed, device=place
    )  # fmt: skip
    export(model, folder / "dense.onnx")
    held_out = accuracy(model, images[-HELD_OUT:], labels[-HELD_OUT:])
    test = accuracy(model, *images_and_labels(data, "test"))
    print(f"{folder / 'dense.onnx'}: held-out {100 * held_out:.1f} %, test {100 * test:.1f} %")


def main() -> None:
    """Train, export, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="", help="cpu or cuda; by default cuda where there is one")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    make(args.data, args.out, epochs=args.epochs, batch=args.batch, seed=args.seed, device=args.device)


if __name__ == "__main__":
    main()
