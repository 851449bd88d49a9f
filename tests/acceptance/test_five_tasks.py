"""The five tasks of docs/tasks.md on real data, each timed, with all that is printed, in out/acceptance/five_tasks.md.

A ViT-Tiny, calibrated on 128 ImageNet training images and checked on IMAGES others; DEIMv2-Atto on 50 COCO images.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

IMAGES = 200
PREPROCESS = "--resize 248 --crop 224 --mean 0.5 --std 0.5"
VAL = f"--data DATA/imagenet/val --samples {IMAGES} --classes DATA/imagenet/classes.txt"
COCO = "--data DATA/coco_mini/images --fit stretch --mean 0 --std 1"
TRAIN = f"--data DATA/imagenet/train {PREPROCESS}"
SCRIPT = """
import gpusq_onnx

images = {"resize": 248, "crop": 224, "mean": 0.5, "std": 0.5}
result = gpusq_onnx.compress("model.onnx", "prune24,qdq-int8", data="DATA/imagenet/train", data_options=images)
labelled = {"classes": "DATA/imagenet/classes.txt", "samples": IMAGES}
found = result.check(data="DATA/imagenet/val", data_options=labelled, gates={"max_top1_drop": 50})
print("passed" if found.passed else found.failures)
"""
TASKS = {
    "compress and check a classifier": [
        f"apply --passes prune24,qdq-int8 {TRAIN} -o small.onnx model.onnx",
        f"check {VAL} --max-top1-drop 50 model.onnx small.onnx",
    ],
    "explain why it is not sparse, and change that": [
        "inspect small.onnx",
        f"apply --passes 'prune24,qdq-int8{{profile=sparse-int8}}' {TRAIN} -o sparse.onnx model.onnx",
        "inspect sparse.onnx",
    ],
    "compress a detector and gate its AP": [
        f"apply --passes qdq-int8 {COCO} --samples 16 -o small_detector.onnx detector.onnx",
        f"check {COCO} --annotations DATA/coco_mini/instances.json --max-ap-drop 1 detector.onnx small_detector.onnx",
    ],
    "use it from Python": ["python compress.py"],
    "put it in CI": [
        f"apply --passes qdq-int8 {TRAIN} --report apply.json -o ci.onnx model.onnx --quiet",
        f"check {VAL} --max-top1-drop 1 --report check.json model.onnx ci.onnx --quiet",
        "report apply.json check.json -o page.html",
    ],
}


def test_each_task_is_done(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    (tmp_path / "model.onnx").symlink_to(data / "vit_tiny_imagenet.onnx")
    (tmp_path / "detector.onnx").symlink_to(data / "deimv2_atto.onnx")
    script = SCRIPT.replace("DATA", str(data)).replace("IMAGES", str(IMAGES))
    (tmp_path / "compress.py").write_text(script, encoding="utf-8")
    told, times = [], []
    for title, commands in TASKS.items():
        began, shown = time.perf_counter(), []
        for command in commands:
            words = shlex.split(command.replace("DATA", str(data)))
            start = words[1:] if words[0] == "python" else ["-m", "gpusq_onnx", *words]
            done = subprocess.run([sys.executable, *start], cwd=tmp_path, capture_output=True, text=True)
            prompt = command if words[0] == "python" else f"gpusq-onnx {command}"
            shown.append(f"$ {prompt}\n{done.stdout}{done.stderr}".replace(str(data), "DATA"))
            assert done.returncode == 0, shown[-1]
        times.append(f"| {title} | {time.perf_counter() - began:.0f} s |")
        told.append(f"## {title.capitalize()}\n\n```console\n{''.join(shown)}```\n")
    assert "all 50 weights can run dense kernels" in told[1] and "48 of 50 weights can run sparse kernels" in told[1]
    table = "\n".join(["| task | time |", "|---|---|", *times])
    print(f"\n{table}")
    page = Path("out/acceptance/five_tasks.md")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([table, "", *told]), encoding="utf-8")
