"""Train the embedded digits model and write tests/assets again.

    make venv && .venv/bin/python -m tools.digits.train [--out FOLDER]

Data: scikit-learn's `load_digits` (1797 images of 8x8, values 0..16; UCI "Optical Recognition of Handwritten Digits",
E. Alpaydin and C. Kaynak, CC BY 4.0). Each pixel becomes a 4x4 square of a grey 3x32x32 float32 image, value
(v/16 - 0.5) / 0.5: nearest-neighbour, so that the archives stay small although they hold the model's exact input.
A fifth of each class is the test set, drawn once with seed 0; the model never sees it.

Written (under 1 MB together; tests/packaging/test_assets.py):
    digits_vit.onnx            dynamo exporter, opset 20: the default of `make demo` and of the fast tests
    digits_vit_legacy17.onnx   the same weights through the TorchScript exporter, opset 17
    digits_train.npz           `pixel_values` and `labels` of 256 training images: calibration
    digits_test.npz            the same of the whole test set: measuring

Half a minute on one core. Deterministic on one machine (one seed, one thread); another CPU or torch may round
differently, so retraining moves the weights and every figure printed from them a little.
"""

import argparse
import pathlib
import time
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from tools.vit import SmallVit

ASSETS = pathlib.Path(__file__).parents[2] / "tests" / "assets"
CALIBRATION_IMAGES = 256
KEPT_METADATA = (
    "namespace",
    "pkg.torch.onnx.name_scopes",
)  # module paths; the rest names files of this machine, or is bulk


class Split(NamedTuple):
    """Images float32 [n, 3, 32, 32] and labels int64 [n]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_splits(seed: int = 0) -> tuple[Split, Split]:
    """(train, test); the test set is a fifth of every class."""
    digits = load_digits()
    images = (digits.images.astype(np.float32) / 16 - 0.5) / 0.5
    images = np.broadcast_to(np.kron(images, np.ones((4, 4), np.float32))[:, None], (len(images), 3, 32, 32))
    labels = digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    classes = [order[labels[order] == c] for c in range(10)]
    test = np.concatenate([of_class[: len(of_class) // 5] for of_class in classes])
    test = rng.permutation(test)
    train = order[~np.isin(order, test)]
    return Split(images[train].copy(), labels[train]), Split(images[test].copy(), labels[test])


def shifted(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each image moved by up to 2 pixels (half an original one) each way; what enters is background."""
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    corners = rng.integers(0, 5, (len(images), 2)).tolist()
    return torch.stack([padded[i, :, y : y + 32, x : x + 32] for i, (y, x) in enumerate(corners)])


def train(data: Split, epochs: int, seed: int = 0) -> SmallVit:
    """AdamW, one-cycle learning rate, label smoothing 0.1, shifts as the only augmentation."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = SmallVit()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    batches = len(data.labels) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * batches)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(labels)))
        for index in order[: batches * 64].split(64):
            optimizer.zero_grad()
            loss_of(model(shifted(images[index], rng)), labels[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: SmallVit, folder: pathlib.Path) -> None:
    """Both exporters, batch dynamic."""
    x = torch.zeros(2, 3, 32, 32)
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    torch.onnx.export(
        model,
        (x,),
        str(folder / "digits_vit_legacy17.onnx"),
        dynamo=False,
        opset_version=17,
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        **names,
    )
    program = torch.onnx.export(
        model, (x,), dynamo=True, opset_version=20, dynamic_shapes=({0: "batch"},), verbose=False, **names
    )
    proto = program.model_proto
    for node in proto.graph.node:
        kept = [(entry.key, entry.value) for entry in node.metadata_props if entry.key in KEPT_METADATA]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)
    onnx.save(proto, folder / "digits_vit.onnx")


def main() -> None:
    """Train, export, save the data, print what was reached."""
    parser = argparse.ArgumentParser(description="Train the embedded digits model.")
    parser.add_argument("--out", type=pathlib.Path, default=ASSETS)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # sums in one order: the same bytes each time
    torch.use_deterministic_algorithms(True)

    start = time.perf_counter()
    train_set, test_set = load_splits()
    model = train(train_set, args.epochs)
    with torch.no_grad():
        predicted = model(torch.from_numpy(test_set.images)).argmax(1).numpy()
    correct = int((predicted == test_set.labels).sum())
    export(model, args.out)
    calibration = Split(*(array[:CALIBRATION_IMAGES] for array in train_set))
    for name, split in (("train", calibration), ("test", test_set)):
        np.savez_compressed(args.out / f"digits_{name}.npz", pixel_values=split.images, labels=split.labels)
    print(f"{correct} of {len(test_set.labels)} test images right, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
