"""A slice of the fuzz room, and every model that once made the tool fail."""

import random
from pathlib import Path

import pytest

from tools.fuzz import arena, mutate, seeds, targets

ROOT = Path(__file__).parents[2]
CORPUS = sorted((ROOT / "tools" / "fuzz" / "corpus").glob("*.onnx"))
# `make fuzz` has thousands.
SLICE = {"models": 50, "passes": 20, "options": 75, "data": 25, "containers": 50, "reports": 12, "kills": 2}
PIPELINES = (
    "prune24{method=magnitude,head=true}",
    "prune24,qdq-int8",
    "fold,prune24",
    "fp16",
    "permute,prune24{method=sparsegpt}",
)
PATIENCE = 60  # seconds a case may take on a machine that does other things, too


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    targets.warm_up()


@pytest.mark.long
@pytest.mark.parametrize("name", targets.ALL)
def test_no_broken_input_is_our_fault(name: str) -> None:
    score = arena.run(targets.ALL[name], range(SLICE[name]), limit=PATIENCE)
    assert score.failures == []
    assert sum(score.codes.values()) == SLICE[name]


@pytest.mark.long
@pytest.mark.parametrize("model", CORPUS, ids=lambda path: path.stem)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_failed_once(model: Path, pipeline: str, tmp_path: Path) -> None:
    def make(_: random.Random, folder: Path) -> list[str]:
        output = str(folder / arena.OUT / "made.onnx")
        return ["apply", str(model), "-p", pipeline, "-o", output, "--samples", "2"]

    assert arena.play(arena.Target("corpus", make), 0, tmp_path / "case")["problem"] == ""


def test_the_arena_sees_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours, a hang, a crash and a leftover are failures; the cases after them are played."""
    import os
    import signal
    import time

    def make(dice: random.Random, folder: Path) -> list[str]:
        return [folder.name, str(folder)]

    def main(words: list[str]) -> int:
        behaviours.pop(0)(Path(words[1]))
        return 4 if len(behaviours) == 5 else 2

    behaviours = [
        lambda folder: None,
        lambda folder: (folder / arena.OUT / "left").touch(),
        lambda folder: 1 / 0,
        lambda folder: os.kill(os.getpid(), signal.SIGTERM),
        lambda folder: time.sleep(60),
        lambda folder: None,
    ]
    found = []
    for number, behaviour in enumerate(list(behaviours)):
        behaviours[:] = [behaviour] * (6 if number == 0 else 1)
        monkeypatch.setattr("gpusq_onnx.cli.main", main)
        found.append(arena.run(arena.Target("toy", make), [number], limit=2).failures)
    kinds = [failures[0][1].split(":")[0] if failures else "" for failures in found]
    assert kinds[0] == "exit code 4"
    assert kinds[1].startswith("exit code 2 left")
    assert kinds[2].startswith("ZeroDivisionError left main")
    assert kinds[3].startswith("the process ended, signal 15")
    assert kinds[4].startswith("no answer within 2 s")
    assert kinds[5] == ""


@pytest.mark.parametrize("seed", seeds.SEEDS)
def test_the_same_seed_makes_the_same_model(seed: str) -> None:
    made = []
    for _ in range(2):
        proto = seeds.SEEDS[seed]()
        mutate.message(random.Random(3), proto)
        made.append(mutate.bytes_of(random.Random(4), proto.SerializeToString(deterministic=True)))
    assert made[0] == made[1] != seeds.SEEDS[seed]().SerializeToString(deterministic=True)
