"""Models: small legal models broken, and given to commands.

models   bytes and protobuf fields, for plan, apply, inspect, pack and check with the common pipelines
passes   one protobuf field, since most such models are still models, for apply with every pass there is
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import ModelProto

from tools.fuzz import mutate
from tools.fuzz.arena import OUT, Target
from tools.fuzz.seeds import SEEDS, WIDTH

_PIPELINES = ("prune24{method=magnitude,head=true}", "prune24", "qdq-int8", "prune24,qdq-int8", "fold,prune24", "fp16")
_EVERY = (
    "canonical", "fold", "patch-matmul,prune24{patch=true}", "permute,prune24", "prune24{method=sparsegpt}",
    "prune48pair", "prune-nm{pattern=1:4}", "prune{pattern=2:4}", "int4-weights", "qdq-int4", "qdq-fp8", "qdq-nvfp4",
    "qdq-int8{rounding=gptq}", "qdq-int8{profile=sparse-int8}", "qdq-int8{weights=int8,observer=entropy}",
    "prune24,fp16", "prune24,qdq-int8,fp16", "prune24,distill{steps=1,batch=2}", "qdq-int8,qat{steps=1,batch=2}",
)  # fmt: skip
_VERBS = (
    "cam", "tune", "plan", "bench --batch 4 --rounds 3 --backend onnxruntime",
    "bench --batch 4 --rounds 3 --backend torch-cpu",
)  # fmt: skip


def make(random: Random, folder: Path) -> list[str]:
    """A broken model and the words of a command on it."""
    proto, path = SEEDS[random.choice(list(SEEDS))](), folder / "model.onnx"
    if random.random() < 0.25:
        onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=256)
        proto = onnx.load(path, load_external_data=False)
    if random.random() < 0.7:
        mutate.message(random, proto)
    try:
        data = proto.SerializeToString()
    except Exception:  # what cannot be written is no file to read
        data = ModelProto().SerializeToString()
    path.write_bytes(mutate.bytes_of(random, data) if random.random() < 0.4 else data)
    pipeline, output = random.choice(_PIPELINES), str(folder / OUT / "made.onnx")
    verb = random.choices(("apply", "plan", "inspect", "pack", "check"), (50, 25, 13, 10, 2))[0]
    more = {
        "apply": ["-p", pipeline, "-o", output, "--samples", "2"],
        "plan": ["-p", pipeline],
        "pack": ["-o", output],
        "check": [str(path), "--samples", "1"],
    }
    return [verb, str(path), *more.get(verb, [])]


def judge(folder: Path, out: Path) -> str:
    """A model that was written loads in a default session whenever its input did."""
    made = out / "made.onnx"
    if not made.exists() or made.read_bytes()[8:16].startswith(b'{"'):  # nothing written, or what `pack` writes
        return ""
    found = _refusal(made)
    ours = found and not _refusal(folder / "model.onnx")
    return f"the output does not load and the input does: {found}" if ours else ""


def judge_formats(folder: Path, out: Path) -> str:
    """As `judge`; but FP8 may load without fused Q/DQ only, as `apply` says, and NVFP4 in TensorRT only."""
    problem = judge(folder, out)
    if not problem or "trt:TRT_FP4DynamicQuantize" in problem:
        return ""
    return _refusal(out / "made.onnx", "session.disable_quant_qdq") and problem


def _refusal(path: Path, *entries: str) -> str:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    for entry in entries:
        options.add_session_config_entry(entry, "1")
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error).splitlines()[0]
    return ""


def make_for_passes(random: Random, folder: Path) -> list[str]:
    """A model with one field broken, and the words of `apply` with a pass, or of another verb, with data."""
    seed, path = random.choice(("block", "block", "block", "laid_out", "controlled", "fused")), folder / "model.onnx"
    proto = SEEDS[seed]()
    mutate.message(random, proto, edits=1)
    path.write_bytes(proto.SerializeToString())
    verb, output = random.choice(_VERBS) if random.random() < 0.2 else "apply", folder / OUT
    if verb.startswith("bench"):
        return [*verb.split(), str(path)]
    shape = {"block": (4, 3, 8, 8), "fused": (4, 6, WIDTH)}.get(seed, (4, WIDTH))
    np.save(folder / "data.npy", np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    more = {
        "apply": ["-p", random.choice(_EVERY), "-o", str(output / "made.onnx")],
        "cam": ["-o", str(output / "seen.html"), "--show", "1"],
        "tune": ["-o", str(output / "tuned.toml"), "--at-most", "50%"],
        "plan": ["--sensitivity"],
    }[verb]
    return [verb, str(path), "--samples", "4", "--data", str(folder / "data.npy"), *more]


TARGET = Target("models", make, judge)
PASSES = Target("passes", make_for_passes, judge_formats, patience=3)
