"""What a training step on an exported graph costs beside the step of the torch module that it was exported from.

Forward, loss, backward; no optimizer, which would be the same on both sides. Time: both modules in one process, step by
step in turn, on one thread, CPU seconds (what else the machine does then hardly counts), medians. Memory: a process
each; the peak of resident memory during the steps over what was resident before the model was made (Linux: VmHWM after
clear_refs). Both as the training loop has it: glibc keeps freed memory.

`attending` compares attention as networks have it with torch's, both on bfloat16, forward and backward.
`distilling` runs the whole command on DeiT-Base: what an image costs, and that memory does not grow with their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import median
from typing import Any

from tools.bench.cases import MB, Line, Setting
from tools.bench.measure import Usage, gpusq, python
from tools.zoo.exports import Zoo

MODELS = {"deit_tiny_224": 8, "deit_small_224": 4, "swin_tiny_224": 4}  # with the batch of a step
EXPORTER = "legacy17"  # what most exported files come from, and the harder one: everything taken apart
TIME, MEMORY, QDQ = 1.05, 1.1, 1.35
LARGE = "deit_base_224"  # of `distilling`
BATCH, SHORT, LONG = 4, 2, 6  # of `distilling`: images in a step, and steps of its two runs
AN_IMAGE = 1.4  # a step, the teacher's forward pass (a third of it), and a little
GROWTH = 1.05

TOKENS = (49, 98, 197, 577)  # of a window, of half an image of 224 pixels, of a whole one, of one of 384

_ATTENTION = """
import json, sys, time
import torch
from torch.nn import functional
from gpusq_onnx.torchgraph.functions import attention

tokens, rounds = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
q, k, v = (torch.randn(8, 3, tokens, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
sides = {"ours": lambda: attention(q, k, v, None, False, 0.125),
         "torch": lambda: functional.scaled_dot_product_attention(q, k, v, scale=0.125)}
seconds = {side: [] for side in sides}
with torch.autocast("cpu", torch.bfloat16):
    for _ in range(rounds + 1):
        for side, run in sides.items():
            began = time.process_time()
            run().backward(v.detach())
            seconds[side].append(time.process_time() - began)
print(json.dumps({side: taken[1:] for side, taken in seconds.items()}))
"""

_STEPS = """
import json, sys, time
import torch
from gpusq_onnx.graph.io import load
from gpusq_onnx.runtime.machine import freed_memory_kept
from gpusq_onnx.torchgraph.convert import convert
from tools.zoo.native import native

def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

name, path, batch, rounds, sides = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5].split(",")
torch.set_num_threads(1)
x = torch.randn(batch, 3, 224, 224)
original = native(name)  # in both processes, so that both have imported the same
if "native" not in sides:
    del original
before = resident("VmRSS")
network = convert(load(path)) if "ours" in sides else None
run = {"native": lambda: original(x), "ours": lambda: next(iter(network(x).values()))}
seconds = {side: [] for side in sides}

def step(side):
    began = time.process_time()
    run[side]().square().mean().backward()
    seconds[side].append(time.process_time() - began)
    for p in (original if side == "native" else network).parameters():
        p.grad = None

with freed_memory_kept():  # as the training loop does, for both sides
    for side in sides:
        step(side)
    open("/proc/self/clear_refs", "w").write("5")
    seconds = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            step(side)
own = sum(p.numel() * p.element_size() for p in original.parameters()) if sides == ["native"] else 0
print(json.dumps({"seconds": seconds, "peak": resident("VmHWM") - before + own}))
"""


def training(setting: Setting) -> Iterator[Line]:
    """A step on the exported graph against a step of the original module: time, memory, time with Q/DQ."""
    zoo = Zoo.default()
    for model, batch in MODELS.items():
        path = str(zoo.exported(model, EXPORTER))
        rounds = 2 * setting.repeat
        yield _time(f"{model}, batch {batch}: training step", model, path, batch, rounds, TIME)
        peaks = {side: _steps(model, path, batch, 2, side)["peak"] / MB for side in ("ours", "native")}
        yield Line(
            f"{model}, batch {batch}: training memory",
            peaks["ours"],
            peaks["native"],
            MEMORY * peaks["native"],
            "MB",
            f"{MEMORY}x the original module",
        )
        quantised = str(setting.scratch / f"{model}_qdq.onnx")
        gpusq("apply", "--quiet", "--passes", "qdq-int8", "--samples", "8", "-o", quantised, path)
        yield _time(f"{model}, batch {batch}: training step, Q/DQ", model, quantised, batch, rounds, QDQ)


def attending(setting: Setting) -> Iterator[Line]:
    """Attention in training against torch's kernel in bfloat16, by the number of tokens."""
    for tokens in TOKENS:
        found = _printed(_ATTENTION, tokens, 4 * setting.repeat)
        ours, reference = (1e3 * median(found[side]) for side in ("ours", "torch"))
        yield Line(f"attention, {tokens} tokens, batch 8", ours, reference, reference, "ms", "torch's, in bfloat16")


def distilling(setting: Setting) -> Iterator[Line]:
    """`distill` as it is shipped, on DeiT-Base: CPU seconds an image, and memory with few and many images."""
    dense, pruned = str(Zoo.default().exported(LARGE, EXPORTER)), str(setting.scratch / "pruned.onnx")
    gpusq("apply", "--quiet", "--passes", "prune24{method=magnitude}", "-o", pruned, dense)
    few, more = (_distill(setting, pruned, dense, samples=32, steps=steps) for steps in (SHORT, LONG))
    many = _distill(setting, pruned, dense, samples=256, steps=SHORT)
    original = median(_steps(LARGE, dense, BATCH, SHORT, "native")["seconds"]["native"]) / BATCH
    yield Line(
        "distill: an image",
        (more.cpu - few.cpu) / (BATCH * (LONG - SHORT)),
        original,
        AN_IMAGE * original,
        "s",
        f"{AN_IMAGE}x a step of the original module (one thread, float32), an image",
    )
    yield Line(
        "distill, 256 images: peak memory",
        many.peak / MB,
        few.peak / MB,
        GROWTH * few.peak / MB,
        "MB",
        f"{GROWTH}x that of 32 images",
    )


def _distill(setting: Setting, pruned: str, teacher: str, *, samples: int, steps: int) -> Usage:
    passes = f"distill{{teacher={teacher} batch={BATCH} steps={steps}}}"
    images = ("--data", str(setting.images), "--resize", "248", "--crop", "224", "--samples", str(samples))
    written = str(setting.scratch / f"distilled-{samples}-{steps}.onnx")
    return gpusq("apply", "--quiet", "--passes", passes, *images, "-o", written, pruned)


def _time(what: str, model: str, path: str, batch: int, rounds: int, bar: float) -> Line:
    seconds = _steps(model, path, batch, rounds, "native", "ours")["seconds"]
    ours, native = median(seconds["ours"]), median(seconds["native"])
    return Line(what, ours, native, bar * native, "s", f"{bar}x the original module")


def _steps(model: str, path: str, batch: int, rounds: int, *sides: str) -> dict[str, Any]:
    return _printed(_STEPS, model, path, batch, rounds, ",".join(sides))


def _printed(script: str, *arguments: str | int) -> dict[str, Any]:
    """The JSON in the last line of what a script prints."""
    found: dict[str, Any] = json.loads(python("-c", script, *map(str, arguments)).output.splitlines()[-1])
    return found
