"""The ablation on a model and data of nearly no size: every kind of arm runs, once, and lands in the table."""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.table import resolve
from tools.ablation.__main__ import carry_out
from tools.ablation.arms import PAPER, SHIPPED, Arm, arms, claims
from tools.ablation.runs import Desk, Size
from tools.ablation.table import interval, order_rows, orders, rows

SMALL = Size(images=32, steps=2, batch=8, test=32)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A folder with an untrained model and two small Parquet files."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    torch = pytest.importorskip("torch")
    from tools.ablation.vit_cifar10 import export
    from tools.vit import SmallVit

    folder = tmp_path_factory.mktemp("ablation")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        images = []
        for _ in range(32):
            buffer = BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"img": images, "label": rng.integers(0, 10, 32)})
        pq.write_table(table, folder / f"{part}.parquet")
    torch.manual_seed(0)
    export(SmallVit(width=32, depth=2, heads=2).eval(), folder / "dense.onnx")
    return Desk(folder, folder, SMALL)


@pytest.mark.long
def test_every_kind_of_arm_runs_once(desk: Desk) -> None:
    chosen = [arm for arm in arms() if arm.name in ("one-shot", "calibrated", "full")]
    results = [desk.run(arm, 0) for arm in chosen]
    assert [r["group"] for r in results] == ["float", "float", "int8", "int8", "int4", "int4"]
    assert all(0 <= r["top1"] <= 1 and np.isfinite(r["kl"]) for r in results)
    again = desk.run(chosen[1], 0)
    assert again == json.loads(json.dumps(results[1]))
    other = desk.run(Arm("full", "float", "gate=false"), 0)
    assert other["wanted"] != again["wanted"]
    text = "\n".join(rows(results, arms()))
    assert "| int4" in text.replace("|int4", "| int4")
    found = orders(desk.folder, claims(), [0], SMALL.test)
    assert all(f["seeds"] == 1 for f in found)
    assert len(order_rows(found)) == len(found) + 2


@pytest.mark.slow
def test_a_result_is_redone_when_the_model_it_starts_from_was_trained_otherwise(desk: Desk) -> None:
    arm = next(arm for arm in arms() if arm.key == "int8.calibrated")
    before = desk.run(arm, 0)
    after = Desk(desk.folder, desk.data, replace(SMALL, lr=0.05)).run(arm, 0)
    assert after["kl"] != before["kl"]


@pytest.mark.slow
def test_two_processes_share_the_arms_and_give_what_one_gives(desk: Desk) -> None:
    chosen = [arm for arm in arms() if arm.name == "one-shot"]
    found = list(carry_out(desk, chosen, 2, 2))
    assert [result["seed"] for result in found] == [0, 1]
    assert found[0]["top1"] == desk.run(chosen[0], 0)["top1"]


@pytest.mark.long
def test_the_int4_model_has_4_bit_codes_and_wider_steps(desk: Desk) -> None:
    desk.run(next(arm for arm in arms() if arm.key == "int4.calibrated"), 0)
    model = onnx.load(desk.start("int4", 0))
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    zeros = {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert zeros
    assert {kinds[name] for name in zeros} == {TensorProto.INT4}


def test_the_arms_of_the_claims_exist() -> None:
    keys = {arm.key for arm in arms()}
    assert len(keys) == len(arms())
    assert {key for claim in claims() for key in (claim.better, claim.worse)} <= keys


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_arms_are_the_passes_defaults(name: str) -> None:
    merged = dict(option.split("=") for option in f"{PAPER} {SHIPPED[name]}".split())  # as Desk.options does
    (step,) = resolve(parse(name))
    (same,) = resolve(parse(f"{name}{{{','.join(f'{key}={value}' for key, value in merged.items())}}}"))
    assert same.options == step.options


def test_an_interval_holds_the_mean_of_what_it_is_drawn_from() -> None:
    difference = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 1000, p=[0.1, 0.6, 0.3])
    low, high = interval(difference)
    assert low < difference.mean() < high
    assert low > 0
    assert interval(np.zeros(50)) == (0.0, 0.0)
