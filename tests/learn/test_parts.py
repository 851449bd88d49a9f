"""Small parts of the loop: masks, optimiser groups, the rate, the mean, the guard, checkpoints, logs."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import classroom
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from torch import nn  # noqa: E402

from gpusq_onnx.errors import InvariantError, UsageError  # noqa: E402
from gpusq_onnx.graph import io  # noqa: E402
from gpusq_onnx.graph.structure import analyse  # noqa: E402
from gpusq_onnx.learn import checkpoint as files  # noqa: E402
from gpusq_onnx.learn.average import Average  # noqa: E402
from gpusq_onnx.learn.guard import RETRIES, Guard, GuardState  # noqa: E402
from gpusq_onnx.learn.log import Log  # noqa: E402
from gpusq_onnx.learn.masks import Masks, rounded_patterns  # noqa: E402
from gpusq_onnx.learn.optimiser import optimiser, rate, set_rate  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402
from gpusq_onnx.sparsity import magnitude  # noqa: E402
from gpusq_onnx.sparsity.patterns import PATTERNS, Pattern  # noqa: E402


def test_masks_are_the_zeros_of_the_sites_and_nothing_else() -> None:
    model = classroom.pruned()
    kept = classroom.kept(model)
    assert len(kept) == 12
    values = {c.name: c.values for c in model.constants() if c.name in kept}
    assert all(((values[name] != 0) == mask).all() for name, mask in kept.items())


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_what_rounding_made_zero_may_move_again(pattern: Pattern) -> None:
    """The float model's zeros stay where it is known; else a group has as many places as its pattern keeps."""
    sparse, rounded = io.load(classroom.MODEL), io.load(classroom.MODEL)
    before, after = (
        [site for site in analyse(model).sites if site.role in classroom.PRUNED and pattern.fits(site.k)]
        for model in (sparse, rounded)
    )
    for whole, site in zip(before, after, strict=True):
        pruned = magnitude.prune(whole.read(), pattern)
        pruned[0] = 0  # a row that was zero before it was rounded
        whole.write(pruned)
        small = np.abs(pruned) < np.quantile(np.abs(pruned), 1 - 0.7 * pattern.density)
        site.write(np.where(small, np.zeros_like(pruned), pruned))
    after[-1].write(np.zeros_like(after[-1].read()))
    followed = [(site, pattern) for site in after]
    known, unknown = (rounded_patterns(followed, model) for model in (sparse, None))
    for whole, site in zip(before[:-1], after[:-1], strict=True):
        own, filled = (site.view.read(kept[str(site.weight.name)]) for kept in (known, unknown))
        values = site.read() != 0
        np.testing.assert_array_equal(own, whole.read() != 0)
        assert values.sum() < 0.9 * own.sum(), "rounding made zeros"
        assert pattern.holds(filled) and filled[values].all()
        assert filled.mean() == pattern.density, "no place is given away"
    assert known[str(after[-1].weight.name)].any() and not unknown[str(after[-1].weight.name)].any()
    other = io.load(classroom.MODEL)  # dense: its places break the pattern
    assert all((kept == unknown[name]).all() for name, kept in rounded_patterns(followed, other).items())


def test_a_mask_clears_gradients_rewrites_zeros_and_tells() -> None:
    layer = nn.Linear(4, 1, bias=False)
    masks = Masks(layer, {"weight": "w"}, {"w": np.array([[True, False, True, False]]), "elsewhere": np.ones(3, bool)})
    masks.apply()
    masks.verify("here")
    layer(torch.ones(1, 4)).sum().backward()
    masks.clear_gradients()
    assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[1, 0, 1, 0]]
    with torch.no_grad():
        layer.weight[0, 1] = float("nan")
    with pytest.raises(InvariantError, match="1 of 2 are not zero"):
        masks.verify("there")
    masks.apply()
    masks.verify("again")
    assert (len(masks), masks.checks) == (1, 3)


def test_groups_by_role() -> None:
    names = {"w": "weight", "b": "bias", "n": "norm", "p": "position", "s": "scale"}
    named = [(name, nn.Parameter(torch.ones(2))) for name in names]
    made = optimiser(named, names, TrainingOptions(lr=1e-3, decay=0.05, scale_lr=0.1))
    set_rate(made, 2e-4)
    found = {g["role"]: (len(g["params"]), g["lr"], g["weight_decay"]) for g in made.param_groups}
    assert found == {
        "weight": (1, 2e-4, 0.05),
        "scale": (1, pytest.approx(2e-5), 0.0),
        "other": (3, 2e-4, 0.0),
    }


def test_the_rate_rises_and_falls_to_one_percent() -> None:
    rates = [rate(step, 100, TrainingOptions(warmup=0.1)) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1 and rates[-1] == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[54] == pytest.approx(0.505, abs=0.02), "half way down a cosine"
    assert rate(0, 1, TrainingOptions()) == 1


def test_the_mean_follows_and_can_be_off() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    mean = Average([parameter], 0.5)
    for step in range(3):
        with torch.no_grad():
            parameter.add_(1)
        mean.update(step)
    want, value = 0.0, 0.0
    for step in range(3):
        value += 1
        d = min(0.5, (1 + step) / (10 + step))
        want = d * want + (1 - d) * value
    assert mean.values[0].item() == pytest.approx(want)
    mean.store()
    assert parameter.item() == pytest.approx(want)
    assert Average([parameter], 0.0).values == []


def test_the_guard_rolls_back_stops_and_gives_up() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    guard = Guard([parameter])

    def judge(loss: float, step: int) -> str:
        with torch.no_grad():
            parameter.fill_(step)
        return guard.judge(loss, 1.0, step)

    assert [judge(loss, step) for step, loss in enumerate((3.0, 2.0, 1.0), 1)] == ["go on"] * 3
    assert judge(float("nan"), 4) == "roll back" and parameter.item() == 3 and guard.rate == 0.5
    assert [judge(loss, step) for step, loss in enumerate((2.5, 2.5, 2.5, 2.5), 5)] == ["go on"] * 4
    copy = Guard([nn.Parameter(torch.zeros(1))])
    copy.load(guard.state())
    copy.best[0].copy_(guard.best[0])
    assert copy.state() == guard.state()
    assert judge(9.0, 9) == "stop" and parameter.item() == 3
    verdicts = [guard.judge(1.0, float("inf"), 21) for _ in range(RETRIES)]
    assert verdicts == [*["roll back"] * (RETRIES - 1), "fail"]
    guard.forget()
    assert judge(100.0, 30) == "go on" and guard.best_step == 30


LONG = "an integer of 5000 digits"
STATE = files.State(3, GuardState(None, 0, 1, [0.5]), [{"step": 3, "loss": 0.1}], ["a note"], 2)
HELD = {"a": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3.0)}


def test_a_checkpoint_is_replaced_whole_and_belongs_to_one_run(tmp_path: Path) -> None:
    files.save(tmp_path, "one", files.Checkpoint(HELD, STATE))
    (tmp_path / f".{files.NAME}.partial").write_bytes(b"cut off")  # a kill in the middle of the next one
    found = files.load(tmp_path, "one", HELD, [{"b": HELD["a"]}], 3)
    assert found is not None and found.state == STATE and found.tensors.keys() == HELD.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in HELD.items())
    assert isinstance(found.state.curve[0]["step"], int), "the bytes of a report are the same after it"
    assert files.load(tmp_path, "another", HELD) is None
    assert files.load(tmp_path / "nowhere", "one", HELD) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), []),
        (("step",), -1),
        (("step",), LONG),
        (("step",), 4),
        (("step",), "three"),
        (("guard",), {}),
        (("guard", "rollbacks"), 9),
        (("guard", "recent"), ["much"]),
        (("curve",), [{"loss": []}]),
        (("notes",), 7),
        (("checks",), None),
    ],
    ids=str,
)
def test_a_checkpoint_is_believed_in_nothing(path: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    document: Any = files.STATES.dump_python(STATE, mode="json")
    if path:
        within = document
        for key in path[:-1]:
            within = within[key]
        within[path[-1]] = value
    text = json.dumps(document if path else value).replace(f'"{LONG}"', "9" * 5000)
    files.write(tmp_path / files.NAME, HELD, {"key": "one", "state": text})
    with pytest.raises(UsageError, match="cannot be read"):
        files.load(tmp_path, "one", HELD, steps=3)


@pytest.mark.parametrize("name", ["junk", "folder", "pipe", "no state", "nested", "missing", "shape", "kind", "half"])
def test_a_file_that_is_no_checkpoint_of_the_run(name: str, tmp_path: Path) -> None:
    path, state = tmp_path / files.NAME, files.STATES.dump_json(STATE).decode()
    kind, groups = {"key": "one", "state": state}, [{"m": HELD["a"], "n": HELD["a"]}]
    {
        "junk": lambda: path.write_bytes(b"no checkpoint"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "no state": lambda: files.write(path, HELD, {"key": "one"}),
        "nested": lambda: files.write(path, HELD, {"key": "one", "state": "[" * 10**5}),
        "missing": lambda: files.write(path, {"a": HELD["a"]}, kind),
        "shape": lambda: files.write(path, {**HELD, "a": torch.zeros(3, 2)}, kind),
        "kind": lambda: files.write(path, {**HELD, "a": torch.zeros(2, 3, dtype=torch.int32)}, kind),
        "half": lambda: files.write(path, {**HELD, "m": torch.zeros(2, 3)}, kind),
    }[name]()
    with pytest.raises(UsageError, match="cannot be read"):
        files.load(tmp_path, "one", HELD, groups, 3)


def test_keys_tell_runs_apart() -> None:
    values, tensors = {"lr": 1e-3}, [torch.ones(3)]
    key = files.key_of(values, tensors)
    assert key == files.key_of(dict(values), [torch.ones(3)])
    assert len({key, files.key_of({"lr": 1e-4}, tensors), files.key_of(values, [torch.tensor([1.0, 1, 2])])}) == 3


def test_a_log_is_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": 1.0 / step})
        with (tmp_path / "log.jsonl").open("ab") as file:
            file.write(b'\xff\n[3]\n{"step": 4, "lo')  # killed while writing
    with Log(tmp_path, 2) as again:
        again.write({"step": 3, "loss": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.5}]
    with Log(None, 0) as silent:
        silent.write({"step": 1})


def test_a_run_that_ends_before_its_first_line_leaves_no_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels"), Log(tmp_path, 0):
        raise ValueError("labels")
    assert not (tmp_path / "log.jsonl").exists()
