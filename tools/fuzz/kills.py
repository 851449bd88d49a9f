"""Killed runs: a signal at a random moment of a command, and the same command once more.

    signals    KILL, TERM, INT, HUP
    commands   apply, apply over a model of two files, finetune (both learning passes), pack, unpack, build
    moments    after a random part of the time that the command takes, or at one of its operations on files, all counted
               in a run that nothing disturbs

What must hold after the signal: each result is whole, or as it was; where the model is, all results are; a command that
heard the signal says so, leaves nothing else and no process. After the second run: the bytes of an undisturbed run, and
nothing else.

Limits: Linux (/proc). `build` is played where GPUSQ_TRT_CPU names the builder for machines without a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import onnx

from tools.fuzz.arena import OUT, Target
from tools.fuzz.interrupted import SAID, TMP, Broken, ended

ASSETS = Path(__file__).parents[2] / "tests" / "assets"
PREFIX = ".gpusq-onnx-"  # of what a killed run may leave until the next one
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
TIMED = (".json", ".jsonl", ".md")  # they hold times: whole, and else not the same twice
MOMENT = "moment.json"  # in the case's folder: which command, which signal, and when
_DATA = f"--data {ASSETS / 'digits_train.npz'}"
_SMALL = "-p prune24{method=magnitude},qdq-int8"
_HARNESS = os.environ.get("GPUSQ_TRT_CPU", "")
COMMANDS = {
    "apply": f"apply -q {_SMALL} {_DATA} --samples 4 --report {OUT}/r.json -o {OUT}/m.onnx model.onnx",
    "apply over two files": f"apply -q -p prune24{{method=magnitude}} -o {OUT}/two.onnx two.onnx",
    "finetune": f"apply -q {_SMALL} {_DATA} --samples 16 --finetune-steps 4 -o {OUT}/m.onnx model.onnx",
    "pack": f"pack -q --json {OUT}/p.json -o {OUT}/p.gpusq small.onnx",
    "unpack": f"unpack -q -o {OUT}/small.onnx small.gpusq",
    "build": f"build -q --batch 2 --cpu-harness {_HARNESS} --cache {OUT}/c --report {OUT}/r.json -o {OUT}/m.plan"
    " small.onnx",
}  # fmt: skip
if not _HARNESS:
    del COMMANDS["build"]


@dataclass(frozen=True)
class Undisturbed:
    """What a command does when it is let alone: its operations on files, the seconds it takes, its files by digest."""

    operations: int
    seconds: float
    files: dict[str, str]


def make(random: Random, folder: Path) -> list[str]:
    """The files of a command, the moment of its end, and its words."""
    kind = random.choice(list(COMMANDS))
    _lay(folder, kind)
    usual = _undisturbed(kind)
    moment = {"kind": kind, "signal": random.choice(SIGNALS)}
    if random.random() < 0.5:
        moment["operation"] = random.randrange(usual.operations)
    else:
        moment["seconds"] = usual.seconds * random.uniform(0, 1.1)
    (folder / MOMENT).write_text(json.dumps(moment))
    return COMMANDS[kind].split()


def call(words: list[str], folder: Path) -> int:
    """Disturb the command, look, and let it run again: the exit code of the second run. Raises Broken."""
    moment = json.loads((folder / MOMENT).read_text())
    usual, before = _undisturbed(moment["kind"]), _files(folder)
    code = ended(words, folder, moment)
    _look_after_the_signal(code, moment, before, _files(folder), usual, (folder / SAID).read_text())
    again = ended(words, folder, {})
    if again != 0:
        raise Broken(f"run again after {moment}: exit code {again}: {(folder / SAID).read_text()[-400:]}")
    found = _files(folder)
    if found != usual.files:
        raise Broken(f"run again after {moment}: {_difference(usual.files, found)}")
    return again


def _look_after_the_signal(
    code: int, moment: dict[str, Any], before: dict[str, str], found: dict[str, str], usual: Undisturbed, said: str
) -> None:
    number, head = getattr(signal, moment["signal"]), COMMANDS[moment["kind"]].split()[-2]
    if code not in (0, 128 + number, -number) or "Traceback" in said:
        raise Broken(f"{moment}: exit code {code}: {said[-400:]}")
    if code >= 0 and (hidden := [name for name in found if PREFIX in name]):
        raise Broken(f"{moment}: exit code {code} left {hidden[:4]}")
    old, now, new = (_results(files) for files in (before, found, usual.files))
    if new[head] == now.get(head) != old.get(head):  # the last one to get its name
        if now != new:
            raise Broken(f"{moment}: {head} is there, and else {_difference(new, now)}")
    elif code == 0:
        raise Broken(f"{moment}: exit code 0 without {head}")
    elif code > 0 and now != old:
        raise Broken(f"{moment}: exit code {code} and {_difference(old, now)}")
    elif head in now and any(now.get(name) != old[name] for name in old):
        raise Broken(f"{moment}: {head} is the old one, and of the others {_difference(old, now)}")
    for name, digest in now.items():
        if digest not in (old.get(name), new.get(name)):
            raise Broken(f"{moment}: {name} is neither what it was nor what it becomes")


def _results(files: dict[str, str]) -> dict[str, str]:
    """Files with names for good: none of a scratch folder, of the cache, and of training, which is gone on with."""
    return {
        name: digest
        for name, digest in files.items()
        if digest and not any(part in name for part in (PREFIX, ".training/", f"{OUT}/c/"))
    }


def _difference(wanted: dict[str, str], found: dict[str, str]) -> str:
    kinds = {
        "missing": wanted.keys() - found.keys(),
        "left": found.keys() - wanted.keys(),
        "other bytes": {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
    }
    return "; ".join(f"{kind}: {sorted(names)[:4]}" for kind, names in kinds.items() if names)


def _files(folder: Path) -> dict[str, str]:
    """Files below OUT and TMP by digest; of those that hold times, the suffix, once they are whole."""
    found = {}
    for path in sorted([*(folder / OUT).rglob("*"), *(folder / TMP).rglob("*")]):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = ""
        elif name.endswith(TIMED):
            if path.suffix == ".json" and PREFIX not in name:
                json.loads(path.read_text())
            found[name] = path.suffix
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@cache
def _desk() -> dict[str, bytes]:
    """The files that the commands read, by name; what takes long to import is at hand after it."""
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401

    import gpusq_onnx.learn.loop
    import gpusq_onnx.torchgraph.write_back  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="gpusq-kills-") as scratch:
        folder = Path(scratch)
        (folder / TMP).mkdir()
        shutil.copy(ASSETS / "digits_vit.onnx", folder / "model.onnx")
        onnx.save(
            onnx.load(folder / "model.onnx"),
            folder / "two.onnx",
            save_as_external_data=True,
            location="two.data",
            size_threshold=1024,
        )
        for line in (
            f"apply -q {_SMALL} {_DATA} --samples 4 -o small.onnx model.onnx",
            "pack -q -o small.gpusq small.onnx",
            "apply -q -p prune24{method=magnitude,head=true} -o old/two.onnx two.onnx",
        ):
            code = ended(line.split(), folder, {})
            assert code == 0, (folder / SAID).read_text()
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != SAID and TMP not in path.relative_to(folder).parts
        }


def _lay(folder: Path, kind: str) -> None:
    """A desk for a command; with an older result, where it writes over one."""
    for name in (OUT, TMP):
        (folder / name).mkdir()
    for name, data in _desk().items():
        if not name.startswith("old/"):
            (folder / name).write_bytes(data)
        elif kind == "apply over two files":
            (folder / OUT / Path(name).name).write_bytes(data)


@cache
def _undisturbed(kind: str) -> Undisturbed:
    with tempfile.TemporaryDirectory(prefix="gpusq-kills-") as scratch:
        folder = Path(scratch)
        _lay(folder, kind)
        counted = folder / "counted"
        began = time.perf_counter()
        code = ended(COMMANDS[kind].split(), folder, {"count": str(counted)})
        seconds = time.perf_counter() - began
        assert code == 0, (folder / SAID).read_text()
        return Undisturbed(int(counted.read_text()), seconds, _files(folder))


TARGET = Target("kills", make, call=call, patience=20)
