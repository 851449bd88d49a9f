"""Option strings, recipes and data options: broken texts, extreme numbers, wrong kinds; for plan, apply and passes."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import onnx

from tools.fuzz import mutate, seeds
from tools.fuzz.arena import OUT, Target

_TEXTS = (
    "prune24{method=sparsegpt,damping=0.01},qdq-int8{profile=accurate}", "prune24{only=[fc1;fc2],head=true}",
    'qdq-int8{weights="int8",skip=[patch]}', "fold,prune24,qdq-int8,fp16", "gpusq-oneshot", "tensorrt-int8",
    "prune24,distill{epochs=1},qdq-int8,qat{steps=2}", "prune24{pattern=4:8pair}", "prune24{bias_correction=false}",
)  # fmt: skip
_CHARS = "{}[],;:=\"' \\\t\n-+.0123456789eEabcxnf\x00é\u202e"
_FLAGS = (
    "--samples", "--calibrate", "--resize", "--crop", "--fit", "--mean", "--std", "--classes", "--layout", "--channels",
    "--interpolation", "--seed", "--max-pixels", "--finetune", "--finetune-steps", "--set", "--data", "--recipe",
    "--data-options", "--report", "--json", "-o", "--annotations", "--masks", "--allow-noop", "--quiet", "--passes",
    "--max-memory",
)  # fmt: skip
_VALUES = (
    "", "0", "1", "-1", "2", "224", "1e9", "9" * 30, "1" * 5000, "nan", "inf", "0.5,0.5,0.5", "1,2", "crop", "NCHW",
    "prune24.damping=2", "prune24.only=[fc1;[x]]", "qdq-int8.x=1", "a=b", "prune24.damping=" + "1" * 5000, ".", "/",
    "{folder}/nothing", "{folder}/seed.onnx", "{folder}/recipe.toml", "{folder}/data.toml", "{folder}/out/r.json", "-",
    "é\u202e", "--", "true", "[" * 3000, "1G", "5M", "1k",
)  # fmt: skip


@lru_cache(maxsize=1)
def _seed() -> bytes:
    return bytes(seeds.block().SerializeToString())


def make(random: Random, folder: Path) -> list[str]:
    """Words of a command about a good model."""
    (folder / "seed.onnx").write_bytes(_seed())
    (folder / OUT).mkdir()
    (folder / "recipe.toml").write_bytes(
        _toml(random, {"pass": [{"name": "prune24", "damping": 0.1, "only": ["fc1"]}]})
    )
    (folder / "data.toml").write_bytes(_toml(random, {"samples": 2, "mean": [0.5, 0.5, 0.5], "crop": 8, "seed": 1}))
    if random.random() < 0.1:
        return ["passes", random.choice(("list", "show")), _broken(random, random.choice(_TEXTS))]
    words = ["plan" if random.random() < 0.9 else "apply", str(folder / "seed.onnx")]
    if words[0] == "apply":
        words += ["-o", str(folder / OUT / "made.onnx"), "--samples", "1"]
    if random.random() < 0.85:
        text = random.choice(_TEXTS)
        words += ["-p", _broken(random, text) if random.random() < 0.8 else text]
    else:
        words += ["--recipe", str(folder / "recipe.toml")]
    for _ in range(random.choice((0, 0, 1, 2, 3))):
        flag, value = random.choice(_FLAGS), random.choice(_VALUES).replace("{folder}", str(folder))
        words += [flag, _broken(random, value) if random.random() < 0.2 else value]
    return [word.replace("\x00", "") for word in words]  # no system hands a zero byte over


def _broken(random: Random, text: str) -> str:
    made = list(text)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(made) + 1)
        edit = random.randrange(4)
        if edit == 0:
            made.insert(at, random.choice(_CHARS))
        elif edit == 1 and made:
            del made[min(at, len(made) - 1)]
        elif edit == 2:
            made[at:at] = made[at // 2 : at]
        else:
            made.insert(at, random.choice(_VALUES))
    return "".join(made)[:20_000]


def _toml(random: Random, document: dict[str, Any]) -> bytes:
    value = mutate.value_of(random, document)
    lines = []
    for key, entry in value.items() if isinstance(value, dict) else ():
        if isinstance(entry, list) and entry and isinstance(entry[0], dict):
            lines += [line for table in entry if isinstance(table, dict) for line in ("[[pass]]", *_pairs(table))]
        else:
            lines += _pairs({key: entry})
    text = "\n".join(lines).encode(errors="replace")
    return mutate.bytes_of(random, text) if random.random() < 0.4 else text


def _pairs(table: dict[str, Any]) -> list[str]:
    return [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items()]


def judge(folder: Path, out: Path) -> str:
    """A model that was written is one."""
    made = out / "made.onnx"
    if made.exists():
        onnx.checker.check_model(str(made))
    return ""


TARGET = Target("options", make, judge)
