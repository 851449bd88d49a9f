"""The exports of docs/how-to, as they are written there but for random weights: each runs, and `plan` prunes the file.

The environment is the zoo's (`tools.zoo.exports`). Not tried here: optimum, which wants another transformers.
"""

import subprocess
from pathlib import Path

import onnx
import pytest
from acceptance_table import Table, gpusq, planned

from tests.docs.pages import ROOT, blocks
from tools.zoo.exports import Zoo

pytestmark = pytest.mark.slow

TITLE = "The exports of docs/how-to, random weights: plan --passes prune24,qdq-int8"
COLUMNS = ["page", "export", "pruned", "quantised"]
SEGFORMER, UPERNET = "nvidia/segformer-b0-finetuned-ade-512-512", "openmmlab/upernet-swin-tiny"
WRITTEN = [
    (page, number, block.text)
    for page in ("classifier", "detector", "segmenter")
    for number, block in enumerate(blocks(ROOT / "docs" / "how-to" / f"{page}.md"), 1)
    if block.language == "python"
]
# The other ways that the segmenter's page gives in words.
DYNAMO = next(text for page, _, text in WRITTEN if page == "segmenter")
FIXED = DYNAMO[: DYNAMO.index("    opset_version")] + "    opset_version=17,\n    dynamo=False,\n)\n"
AXES = '    dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},'
IN_WORDS = [
    ("segmenter", "UPerNet, dynamo", DYNAMO.replace(SEGFORMER, UPERNET)),
    ("segmenter", "SegFormer, TorchScript", FIXED.removesuffix(")\n") + f"{AXES}\n)\n"),
    ("segmenter", "UPerNet, TorchScript", FIXED.replace(SEGFORMER, UPERNET).replace("512, 512)", "576, 576)")),
]


@pytest.mark.parametrize(("page", "export", "text"), [*WRITTEN, *IN_WORDS], ids=lambda value: str(value)[:22].strip())
def test_an_export_runs_and_is_planned(
    page: str, export: object, text: str, shared: Path, table: Table, tmp_path: Path
) -> None:
    snippet = tmp_path / "export.py"
    snippet.write_text(text, encoding="utf-8")
    command = [str(Zoo.default().python().absolute()), "-W", "ignore"]
    command += [str(Path(__file__).with_name("random_weights.py")), str(snippet), str(shared.absolute())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (model,) = tmp_path.glob("*.onnx")
    report, _ = gpusq("plan", "--passes", "prune24,qdq-int8", str(model))
    pruned, quantised = planned(report, "prune"), planned(report, "quantise weight")
    table.add([page, str(export), str(len(pruned)), str(len(quantised))], page=page, export=export)
    assert len(pruned) > 40 and len(quantised) > 40
    batch = onnx.load(model).graph.input[0].type.tensor_type.shape.dim[0]
    assert bool(batch.dim_param) == ("dynamic_" in text), "the page promises a dynamic batch"
