"""Train, export, compress and score one stand-in; what is there already is not made again.

In the cache folder: NAME.training.pt (checkpoint), NAME_EXPORTER.onnx, NAME_EXPORTER_FORM.onnx, and beside the latter a
JSON file for each part of the data with the scores and what they were made with. A result counts while the dense model,
the pipeline and the sizes are the same.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpusq_onnx import check, compress
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.files import write_text
from gpusq_onnx.graph.io import file_digest
from tools.standins.systems import SYSTEMS, Part, Size, System

EXPORTERS = ("legacy17", "dynamo")


@dataclass(frozen=True)
class Desk:
    """The folder of CIFAR-10, the cache, and the size of things."""

    cifar10: Path
    folder: Path
    size: Size = field(default_factory=Size)

    def dense(self, name: str, exporter: str) -> Path:
        """The float model; trained and exported where it is not there."""
        path = self.folder / f"{name}_{exporter}.onnx"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            system = SYSTEMS[name]
            partial = path.with_suffix(".partial")
            export(system.train(self.cifar10, self.folder), system, exporter, partial)
            partial.replace(path)
        return path

    def result(self, name: str, exporter: str, form: str, part: Part) -> dict[str, Any]:
        """Scores of the float model and of one form of it.

        `dense` and `scores`: fractions by metric; `agreement`: share of images or pixels with the dense model's class,
        None for a detector; `cosine`: of its first output with the dense model's, mean over the images; `seconds`
        that compressing took; `pipeline`; `model`: the dense file's sha256; `packed`: bytes of both as packed.
        """
        system, dense = SYSTEMS[name], self.dense(name, exporter)
        wanted = {"pipeline": system.pipeline(form, self.size), "size": asdict(self.size)}
        wanted |= {"model": file_digest(dense)}
        stem = f"{name}_{exporter}_{form.lower().replace(' ', '_').replace(':', '')}"
        model, scored = self.folder / f"{stem}.onnx", self.folder / f"{stem}.{part}.json"
        made = self.folder / f"{stem}.json"
        if not _holds(made, wanted) or not model.exists():
            began = time.perf_counter()
            found = compress(dense, wanted["pipeline"], data=self._data(system, "train"), output=model)
            packed = [side.total["packed_bytes"] for side in (found.outcome.before, found.outcome.after)]
            facts = {**wanted, "seconds": time.perf_counter() - began, "packed": packed, "warnings": found.warnings}
            _write(made, facts)
        if not _holds(scored, wanted):
            given = check(dense, model, data=self._data(system, part)).comparison
            _write(
                scored,
                {
                    **json.loads(made.read_text(encoding="utf-8")),
                    "system": name,
                    "exporter": exporter,
                    "form": form,
                    "part": part,
                    "samples": given.samples,
                    "dense": given.reference_metrics,
                    "scores": given.candidate_metrics,
                    "agreement": given.top1_agreement,
                    "cosine": given.outputs[0].cosine_mean,
                },
            )
        result: dict[str, Any] = json.loads(scored.read_text(encoding="utf-8"))
        return result

    def _data(self, system: System, part: Part) -> DataOptions:
        return system.data(self.cifar10, self.folder, part, self.size)


def export(model: nn.Module, system: System, exporter: str, path: Path) -> None:
    """One ONNX file, batch free: the TorchScript exporter at opset 17, or the dynamo one at 20."""
    x = torch.zeros(2, 3, system.side, system.side)
    names = ["pixel_values", *system.outputs]
    if exporter == "legacy17":
        torch.onnx.export(
            model, (x,), str(path), dynamo=False, opset_version=17, input_names=names[:1], output_names=names[1:],
            dynamic_axes={name: {0: "batch"} for name in names},
        )  # fmt: skip
        return
    torch.onnx.export(
        model, (x,), str(path), dynamo=True, opset_version=20, input_names=names[:1], output_names=names[1:],
        dynamic_shapes=({0: "batch"},), external_data=False, verbose=False,
    )  # fmt: skip


def _holds(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether a result is there and was made with this."""
    return path.exists() and wanted.items() <= json.loads(path.read_text(encoding="utf-8")).items()


def _write(path: Path, found: dict[str, Any]) -> None:
    write_text(path, json.dumps(found, indent=1) + "\n")
