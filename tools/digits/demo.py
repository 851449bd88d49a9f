"""`make demo`: the straight road on the embedded digits model, then every pipeline side by side.

Each command is printed as a user would type it, and run. Files land in out/demo. The table's accuracies are those of a
94 k-parameter model on 355 images: one image is 0.3 points, so it shows the tool at work, not what a large ViT loses.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
OUT = pathlib.Path("out/demo")
MODEL, CALIBRATION, TEST = (
    f"tests/assets/{name}" for name in ("digits_vit.onnx", "digits_train.npz", "digits_test.npz")
)
STRAIGHT_ROAD = "prune24{method=sparsegpt},qdq-int8"
PIPELINES = (
    "prune24{method=magnitude}",
    "prune24{method=sparsegpt}",
    "qdq-int8{profile=accurate}",
    "qdq-int8{profile=sparse-int8}",
    "prune24{method=magnitude},qdq-int8",
    STRAIGHT_ROAD,
    "prune24{method=sparsegpt},qdq-int8{profile=sparse-int8}",
)


def gpusq(*arguments: str, show: bool = True) -> str:
    """Run one command line; its output goes to the terminal when shown, else it is returned."""
    if show:
        print(f"\n$ gpusq-onnx {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "gpusq_onnx", *arguments]
    done = subprocess.run(command, stdout=None if show else subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def row(number: int, pipeline: str) -> str:
    """One line of the table: apply, compare with the dense model on the test set."""
    written = str(OUT / f"{number}.onnx")
    arguments = ("--passes", pipeline, "--data", CALIBRATION, "-o", written, "--quiet", "--json", "-", MODEL)
    outcome = json.loads(gpusq("apply", *arguments, show=False))
    document = json.loads(gpusq("check", "--data", TEST, "--json", "-", "--quiet", MODEL, written, show=False))
    found = document["comparison"]
    top1, agreement = found["candidate_metrics"]["top1"], found["top1_agreement"]
    return line(pipeline, top1, agreement, outcome["after"]["total"]["packed_bytes"], outcome["output"]["bytes"])


def line(pipeline: str, top1: float, agreement: float, deployed: float, file: float) -> str:
    """Accuracy, agreement with the dense model, and both sizes in kB: as an engine stores the weights, and the file."""
    return f"{pipeline:56} {top1:6.1%} {agreement:10.1%} {deployed / 1000:9.0f} kB {file / 1000:6.0f} kB"


def main() -> None:
    """Run the demo from the root of the repository."""
    os.chdir(ROOT)
    OUT.mkdir(parents=True, exist_ok=True)
    written = str(OUT / "digits_24_int8.onnx")
    gpusq("plan", "--passes", STRAIGHT_ROAD, MODEL)
    gpusq(
        "apply",
        "--passes",
        STRAIGHT_ROAD,
        "--data",
        CALIBRATION,
        "--report",
        str(OUT / "report.json"),
        "-o",
        written,
        MODEL,
    )
    gpusq("inspect", written)
    gpusq("check", "--data", TEST, "--max-top1-drop", "10", MODEL, written)

    print(f"\n{'pipeline':56} {'top-1':>6} {'agreement':>10} {'deployed':>12} {'file':>9}")
    dense = json.loads(gpusq("check", "--data", TEST, "--json", "-", "--quiet", MODEL, MODEL, show=False))
    plan = json.loads(gpusq("plan", "--passes", "prune24", "--quiet", "--json", "-", MODEL, show=False))
    accuracy = dense["comparison"]["reference_metrics"]["top1"]
    print(line("(dense)", accuracy, 1, plan["before"]["total"]["packed_bytes"], plan["input"]["bytes"]))
    for number, pipeline in enumerate(PIPELINES):
        print(row(number, pipeline), flush=True)


if __name__ == "__main__":
    main()
