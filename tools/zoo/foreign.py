"""Vision transformers that this project was not built with, random weights, exported to ONNX: the foreign corpus.

    python -m tools.zoo.foreign --list
    python -m tools.zoo.foreign FOLDER [MODEL_FORM ...]  e.g. segformer_legacy17; without names, all that are not there

Run by the environment of the zoo (`tools.zoo.exports`), which alone has timm and transformers. The families are
`tools.zoo.families`. A form is an exporter and what is done after: `legacy17`, `dynamo` (its default: newest opset,
external data), `attention` (dynamo at opset 23, attention fused: the operator Attention), `dynamic` (legacy, batch
open), `free` (legacy, other axes open, too), `half` (legacy, float16), `inputs` (legacy, each initializer a graph
input, too, as before IR version 4), `sim` and `slim` (legacy, through onnxsim and onnxslim), `ort` (legacy, as
onnxruntime saves what it has optimised), `graph` (written by hand). An export that fails leaves MODEL_FORM.txt with the
reason.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tools.zoo.families import EXPORTS, MODELS
from tools.zoo.keras_form import write_keras_vit

sys.path.insert(0, str(Path(os.environ.get("GPUSQ_SHARED") or Path(__file__).parents[3] / "shared") / "zoo"))


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

    family, path = MODELS[name], folder / f"{name}_{form}.onnx"
    if family.build is None:
        write_keras_vit(path)
        return
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no ONNX form
    model = family.build(form == "attention").eval()
    perturb(model)
    if form == "half":
        model = model.half()
    count = 2 if form in ("dynamic", "free") else 1  # a batch of one would be taken for a constant
    feed = tuple(torch.from_numpy(x) for x in family.samples(count, form).values())
    names = list(family.inputs)
    with torch.no_grad():
        if form in ("dynamo", "attention"):
            opset = {"opset_version": 23} if form == "attention" else {}
            torch.onnx.export(model, feed, str(path), dynamo=True, input_names=names, verbose=False, **opset)
        else:
            others = family.free if form == "free" else {}
            axes = {key: {0: "batch", **others.get(key, {})} for key in names} if count > 1 else None
            torch.onnx.export(
                model, feed, str(path), dynamo=False, opset_version=17, input_names=names, dynamic_axes=axes,
                keep_initializers_as_inputs=form == "inputs",
            )  # fmt: skip
    if form == "sim":
        import onnx
        import onnxsim

        onnx.save(onnxsim.simplify(str(path))[0], path)
    if form == "slim":
        import onnx
        import onnxslim

        onnx.save(onnxslim.slim(str(path)), path)
    if form == "ort":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path.with_suffix(".optimised"))
        onnxruntime.InferenceSession(str(path), options)
        path.with_suffix(".optimised").rename(path)


def main() -> None:
    """See the module's text."""
    import torchvision_cpu

    if sys.argv[1:] == ["--list"]:
        print("\n".join(EXPORTS))
        return
    torchvision_cpu.preload()
    folder, wanted = Path(sys.argv[1]), sys.argv[2:] or EXPORTS
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
