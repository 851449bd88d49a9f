"""What is measured, against what, and the bar: one function a claim, each yielding its lines of the table.

Both sides of a ratio run interleaved in the same run, so that a busy machine slows both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tools.bench.measure import Usage, gpusq, peak_of, python, seconds_of

BATCH = 4  # images a forward pass: what calibration uses (gpusq_onnx.calibration.image_bytes.BATCH)
MB = 1e6
_PEAK = "2.5x the file + 1500 MB"
_LOAD_AND_SAVE = "import onnx, sys; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"
_PROOF = """
import sys
import numpy as np
import onnxruntime
from onnxruntime import GraphOptimizationLevel as Level
for level in (Level.ORT_ENABLE_ALL, Level.ORT_DISABLE_ALL):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    x = np.random.default_rng(0).standard_normal([1, *image.shape[1:]], dtype=np.float32)
    session.run(None, {image.name: x})
"""
_IMPORTS_ONLY = (
    "import gpusq_onnx.cli.app, gpusq_onnx.cli.console, gpusq_onnx.pipeline.manager, gpusq_onnx.passes.prune, "
    "gpusq_onnx.report.run"
)
_FORWARDS = """
import os, sys, time
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = len(os.sched_getaffinity(0))
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images, batch = int(sys.argv[2]), int(sys.argv[3])
shape = [batch, *session.get_inputs()[0].shape[1:]]
x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
name = session.get_inputs()[0].name
session.run(None, {name: x})
began = time.perf_counter()
for _ in range(images // batch):
    session.run(None, {name: x})
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Line:
    """One line of the table: ours against what it is compared with, in `unit`; met when ours <= bar."""

    what: str
    ours: float
    reference: float
    bar: float
    unit: str
    against: str

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.ours <= self.bar


@dataclass(frozen=True)
class Setting:
    """The model, the images, a scratch folder and how often each pair runs."""

    model: Path
    images: Path
    scratch: Path
    repeat: int


def pruning(setting: Setting) -> Iterator[Line]:
    """Magnitude pruning, file to file, against loading and saving the file, and running it as its proof does."""
    model, written = str(setting.model), str(setting.scratch / "pruned.onnx")
    copied = str(setting.scratch / "copied.onnx")
    prune = ("apply", "--quiet", "--passes", "prune24{method=magnitude}", "-o", written, model)
    ours: list[Usage] = []
    theirs: list[Usage] = []
    proofs: list[Usage] = []
    python("-c", _LOAD_AND_SAVE, model, copied)  # once unmeasured: the file is in the page cache from here on
    for _ in range(setting.repeat):
        theirs.append(python("-c", _LOAD_AND_SAVE, model, copied))
        ours.append(gpusq(*prune))
        proofs.append(python("-c", _PROOF, written))
    floor, proof = seconds_of(theirs), seconds_of(proofs)
    against = f"1.5x onnx.load + onnx.save, + {proof:.2f} s, the proof's two sessions alone"
    yield Line("prune24{method=magnitude}: time", seconds_of(ours), floor, 1.5 * floor + proof, "s", against)
    own = peak_of([python("-c", _IMPORTS_ONLY) for _ in range(3)])
    size = setting.model.stat().st_size
    against = f"2.2x the file + the interpreter's own ({own / MB:.0f} MB)"
    yield Line(
        "prune24{method=magnitude}: peak memory", peak_of(ours) / MB, size / MB, (2.2 * size + own) / MB, "MB", against
    )


def calibrating(setting: Setting) -> Iterator[Line]:
    """INT8 calibration on few and on many images, against as many float forward passes."""
    model, written = str(setting.model), str(setting.scratch / "quantised.onnx")
    peaks = {}
    for samples in (8, 64):
        quantise = ("apply", "--quiet", "--passes", "qdq-int8", *_images(setting))
        ours: list[Usage] = []
        forwards: list[float] = []
        proofs: list[Usage] = []
        for _ in range(max(2, setting.repeat // 2)):
            forwards.append(_forwards(model, samples))
            ours.append(gpusq(*quantise, "--samples", str(samples), "-o", written, model))
            forwards.append(_forwards(model, samples))
            proofs.append(python("-c", _PROOF, written))
        floor, proof = median(forwards), seconds_of(proofs)
        against = f"1.15x {samples} forwards of onnxruntime + 5 s, + {proof:.2f} s, the proof's two sessions alone"
        yield Line(f"qdq-int8, {samples} images: time", seconds_of(ours), floor, 1.15 * floor + 5 + proof, "s", against)
        peaks[samples] = peak_of(ours) / MB
    yield Line("qdq-int8, 64 images: peak memory", peaks[64], peaks[8], 1.05 * peaks[8], "MB", "1.05x that of 8 images")


def solving(setting: Setting) -> Iterator[Line]:
    """SparseGPT with the dense model beside, against its passes, products and factorisations alone."""
    model, written, samples = str(setting.model), str(setting.scratch / "solved.onnx"), 32
    ours: list[Usage] = []
    floors: list[float] = []
    proofs: list[Usage] = []
    for _ in range(max(2, setting.repeat // 2)):
        floors.append(
            2 * _forwards(model, samples) + float(python("-m", "tools.bench.floor", model, str(samples)).output)
        )
        prune = ("apply", "--quiet", "--passes", "prune24", *_images(setting), "--samples", str(samples))
        ours.append(gpusq(*prune, "-o", written, model))
        proofs.append(python("-c", _PROOF, written))
    floor, proof = median(floors), seconds_of(proofs)
    against = f"1.5x passes, products, factorisations + 5 s, + {proof:.2f} s, the proof's two sessions alone"
    yield Line(f"prune24, {samples} images: time", seconds_of(ours), floor, 1.5 * floor + 5 + proof, "s", against)
    yield Line("the same: peak memory", peak_of(ours) / MB, _size(setting), 2.5 * _size(setting) + 1500, "MB", _PEAK)


def _images(setting: Setting) -> tuple[str, ...]:
    shown = ("--data", str(setting.images), "--resize", "248", "--crop", "224")
    return (*shown, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")


def _size(setting: Setting) -> float:
    return setting.model.stat().st_size / MB


def _forwards(model: str, images: int) -> float:
    return float(python("-c", _FORWARDS, model, str(images), str(BATCH)).output)


def waiting(setting: Setting) -> Iterator[Line]:
    """What somebody at a terminal waits for: --help, and a plan."""
    helps = [gpusq("--help") for _ in range(max(5, setting.repeat))]
    yield Line("--help", seconds_of(helps), 0.1, 0.1, "s", "0.1 s")
    plans = [
        gpusq("plan", "--quiet", "--passes", "prune24,qdq-int8", str(setting.model)) for _ in range(setting.repeat)
    ]
    yield Line("plan --passes prune24,qdq-int8", seconds_of(plans), 3, 3, "s", "3 s")


CASES = {"waiting": waiting, "pruning": pruning, "calibrating": calibrating, "solving": solving}
