"""prune24: what it plans, what it writes, and that second-order pruning earns its keep."""

from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.passes.prune import Prune, Prune24
from gpusq_onnx.pipeline.base import Context, PlanContext, PlanRow
from gpusq_onnx.pipeline.details import Pruned, rows_with
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.sparsity.patterns import parse_pattern

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ["digits_vit.onnx", "digits_vit_legacy17.onnx"]


def _load(name: str = MODELS[0]) -> Model:
    return io.load(ASSETS / name)


def _data(model: Model, file: str = "digits_train.npz", samples: int = 64):  # type: ignore[no-untyped-def]
    inputs = [InputSpec(s.name, s.dtype, s.shape) for s in model.inputs()]
    return open_source(DataOptions(path=ASSETS / file, samples=samples), inputs)


def _run(model: Model, **options: object) -> tuple[list[PlanRow], Context]:
    prune = Prune24(Prune24.Options(**options))
    structure = analyse(model)
    plan = prune.plan(model, structure, PlanContext(data=True))
    context = Context(source=_data(model))
    prune.apply(model, structure, plan, context)
    return plan, context


def _accuracy(model: Model) -> float:
    session = Session(io.to_bytes(model))
    hits = [
        session.run(batch.feed)["logits"].argmax(axis=1) == batch.labels
        for batch in _data(model, "digits_test.npz", 355).batches(64)
    ]
    return float(np.concatenate(hits).mean())


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_names_every_weight_with_a_reason(name: str) -> None:
    model = _load(name)
    structure = analyse(model)
    plan = Prune24(Prune24.Options()).plan(model, structure, PlanContext())
    assert [row.tensor for row in plan] == [site.name for site in structure.sites]
    assert all(row.reason for row in plan)
    skipped = [row for row in plan if row.skipped]
    assert [row.role for row in skipped] == ["patch_embed", "head"] and "channels 3" in skipped[0].reason


def test_auto_means_magnitude_without_data_and_sparsegpt_with() -> None:
    model = _load()
    structure = analyse(model)
    for data, method in ((False, "magnitude"), (True, "sparsegpt")):
        plan = Prune24(Prune24.Options()).plan(model, structure, PlanContext(data=data))
        assert {detail.method for _, detail in rows_with(plan, Pruned)} == {method}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8pair"])
def test_every_planned_weight_follows_the_pattern_and_no_other_changes(name: str, method: str, pattern: str) -> None:
    model, untouched = _load(name), _load(name)
    plan, context = _run(model, method=method, pattern=pattern)
    planned = {row.tensor for row in plan if not row.skipped}
    before = {site.name: site.read() for site in analyse(untouched).sites}
    for site in analyse(model).sites:
        if site.name in planned:
            assert parse_pattern(pattern).holds(site.read()), site.name
            assert context.findings["energy_kept"][site.name] > 0
        else:
            np.testing.assert_array_equal(site.read(), before[site.name])


@pytest.mark.long
def test_sparsegpt_loses_less_than_magnitude_on_real_data() -> None:
    by_magnitude, second_order = _load(), _load()
    _run(by_magnitude, method="magnitude")
    _run(second_order, method="sparsegpt")
    dense = _accuracy(_load())
    assert _accuracy(second_order) > dense - 0.02
    assert _accuracy(second_order) > _accuracy(by_magnitude) + 0.01


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_weights_aim_at_the_dense_model(name: str) -> None:
    """What layers lost before a layer, it makes up for, as far as it can: 1:4 ruins nine predictions of a hundred."""
    accuracy = {}
    for aim in ("layer", "dense"):
        model = _load(name)
        _run(model, method="sparsegpt", pattern="1:4", aim=aim)
        accuracy[aim] = _accuracy(model)
    assert accuracy["dense"] > accuracy["layer"] + 0.02


@pytest.mark.long
def test_bias_correction_keeps_the_mean_output() -> None:
    drifts = []
    for correct in (True, False):
        model = _load()
        _run(model, bias_correction=correct, only=["fc1"])
        outputs = [
            np.concatenate([Session(io.to_bytes(m)).run(b.feed)["logits"] for b in _data(m).batches(64)]).mean(axis=0)
            for m in (_load(), model)
        ]
        drifts.append(float(np.abs(outputs[1] - outputs[0]).max()))
    assert drifts[0] < drifts[1]


@pytest.mark.parametrize(("pattern", "sparse"), [("2:4", True), ("1:4", True), ("4:8", False), ("4:8pair", False)])
def test_only_patterns_with_sparse_kernels_are_advised_on_their_size(pattern: str, sparse: bool) -> None:
    model = _load()
    rows = Prune(Prune.Options(pattern=pattern)).plan(model, analyse(model), PlanContext(data=False))
    assert all(("TensorRT" in row.reason) == sparse for row in rows if not row.skipped)


def test_a_selector_chooses_and_the_rest_is_explained() -> None:
    model = _load()
    plan = Prune24(Prune24.Options(only=["fc1", "fc2"])).plan(model, analyse(model), PlanContext())
    assert {row.role for row in plan if not row.skipped} == {"fc1", "fc2"}
    assert all("only=fc1;fc2" in row.reason for row in plan if row.skipped)


def test_nothing_to_prune_says_why() -> None:
    model = _load()
    with pytest.raises(NothingMatched, match="channels 3 is not a multiple of 4"):
        Prune24(Prune24.Options(only=["patch_embed"])).plan(model, analyse(model), PlanContext())


def test_a_broken_mask_is_caught_by_the_fact() -> None:
    model = _load()
    prune = Prune24(Prune24.Options())
    plan, _ = _run(model, method="magnitude")
    facts = prune.ensures(plan)
    assert facts and all(fact.broken(model, analyse(model)) is None for fact in facts)
    site = next(s for s in analyse(model).sites if s.role == "proj")
    site.write(np.ones_like(site.read()))
    broken = [fact.broken(model, analyse(model)) for fact in facts]
    assert [text for text in broken if text] == [f"{site.out * site.k // 4} groups of {site.name} break 2:4"]


@pytest.mark.parametrize("options", [{"head": True}, {"only": ["head"]}])
def test_the_head_is_pruned_on_demand(options: dict[str, object]) -> None:
    model = _load()
    plan = Prune24(Prune24.Options(**options)).plan(model, analyse(model), PlanContext())
    assert [row.decision for row in plan if row.role == "head"] == ["prune"]
