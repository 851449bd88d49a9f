"""distill: who teaches, what learns, what stays zero; in a pipeline and alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpusq_onnx.pipeline.details import Following
from gpusq_onnx.pipeline.run import RunOptions

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from gpusq_onnx.data.options import DataOptions  # noqa: E402
from gpusq_onnx.errors import EnvironmentLacking, PassFailed, UnsupportedModelError, UsageError  # noqa: E402
from gpusq_onnx.graph import io  # noqa: E402
from gpusq_onnx.graph.model import Model, values_of  # noqa: E402
from gpusq_onnx.graph.structure import analyse  # noqa: E402
from gpusq_onnx.learn import environment, planning  # noqa: E402
from gpusq_onnx.learn.masks import Masks  # noqa: E402
from gpusq_onnx.passes.distill import Distill, DistillOptions  # noqa: E402
from gpusq_onnx.pipeline import manager  # noqa: E402
from gpusq_onnx.pipeline.base import PlanContext  # noqa: E402
from gpusq_onnx.pipeline.grammar import parse  # noqa: E402
from gpusq_onnx.sparsity.patterns import PAIRS_48, Pattern  # noqa: E402

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit.onnx"
LEGACY = ASSETS / "digits_vit_legacy17.onnx"
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=64)
SHORT = "steps=16 batch=8 lr=1e-3 precision=float32 device=cpu"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _sparse_sites(model: Model) -> list[str]:
    return [site.name for site in analyse(model).sites if site.k % 4 == 0 and Pattern(2, 4).holds(site.read())]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distill") / "pruned.onnx"
    manager.run(MODEL, path, parse("prune24{method=magnitude}"), RunOptions(DATA))
    return path


@pytest.mark.long
def test_in_a_pipeline_it_learns_from_the_dense_model(tmp_path: Path) -> None:
    text = f"prune24{{method=magnitude}},distill{{{SHORT}}}"
    outcome = manager.run(MODEL, tmp_path / "out.onnx", parse(text), RunOptions(DATA))
    found = outcome.steps[1].findings
    assert found["soft"]["after"] < 0.7 * found["soft"]["before"]
    assert found["agreement"]["images"] == 64 and found["agreement"]["after"] >= found["agreement"]["before"]
    assert found["masks"] == {"weights": 12, "checks": 3}
    assert [row["step"] for row in found["curve"]] == list(range(1, 17))
    assert found["training"]["processes"] == 1 and found["training"]["batch"] == 8
    before, after = io.load(MODEL), io.load(tmp_path / "out.onnx")
    assert len(_sparse_sites(after)) == 12
    assert len([fact for fact in outcome.steps[1].facts if "2:4" in fact]) == 12
    old = {c.name: values_of(c) for c in before.constants()}
    moved = {c.name for c in after.constants() if not np.array_equal(values_of(c), old[c.name])}
    assert {"pos_embed", "norm.bias"} <= moved, "positions and norms learn, too"
    assert len(moved) == found["learned"]


@pytest.mark.slow
def test_alone_on_a_model_that_was_pruned_elsewhere(pruned: Path, tmp_path: Path) -> None:
    model = io.load(pruned)
    kept = [key for key in model.metadata if key.startswith("pkg.gpusq_onnx")]
    model.set_metadata(dict.fromkeys(kept))  # as if another tool had pruned it
    bare = tmp_path / "bare.onnx"
    io.save(model, bare)
    text = f"distill{{teacher={MODEL} {SHORT}}}"
    outcome = manager.run(bare, tmp_path / "out.onnx", parse(text), RunOptions(DATA))
    assert outcome.steps[0].findings["masks"]["weights"] == 12
    assert len(_sparse_sites(io.load(tmp_path / "out.onnx"))) == 12


@pytest.mark.slow
def test_an_export_of_another_kind_can_teach(pruned: Path, tmp_path: Path) -> None:
    """Its maps have other names: they are matched stage by stage."""
    outcome = manager.run(
        pruned, tmp_path / "out.onnx", parse(f"distill{{teacher={LEGACY} {SHORT}}}"), RunOptions(DATA)
    )
    assert outcome.steps[0].findings["soft"]["after"] < 0.7 * outcome.steps[0].findings["soft"]["before"]


def test_the_plan_shows_patterns_and_maps() -> None:
    model = io.load(MODEL)
    structure = analyse(model)
    rows = Distill(DistillOptions(features="stages")).plan(model, structure, PlanContext(before=frozenset({"prune"})))
    weights = [row for row in rows if row.role != "feature map"]
    assert [row.tensor for row in weights] == [site.name for site in structure.sites]
    assert {row.reason for row in weights} == {"dense"}, "nothing is pruned yet, and no fact says it will be"
    maps = [row for row in rows if row.role == "feature map"]
    assert [row.tensor for row in maps] == structure.feature_maps
    planned = manager.plan(MODEL, parse("prune24,distill"), RunOptions(DATA))
    sparse = [row for row in planned.steps[1].rows if row.detail == Following("2:4")]
    assert len(sparse) == 12 and "zeros are written again" in sparse[0].reason


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("distill", UsageError, "has no teacher"),
        ("distill{teacher=nowhere.onnx}", UsageError, "there is no model nowhere.onnx"),
        ("prune24{method=magnitude},distill{maps=[nonesuch]}", UsageError, "there is no tensor 'nonesuch'"),
        ("qdq-int8,distill{teacher=MODEL}", UsageError, "distill takes a float model, and qdq-int8 comes before it"),
        ("prune24,distill{alpha=0 beta=0 gamma=0}", UsageError, "nothing to learn from"),
        ("prune24,distill{batch=10 accumulate=4}", UsageError, "must divide batch"),
    ],
)
def test_what_it_refuses(text: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        manager.run(MODEL, tmp_path / "out.onnx", parse(text.replace("MODEL", str(MODEL))), RunOptions(DATA))
    assert not list(tmp_path.iterdir())


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = environment.find_spec
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name == "accelerate" else found(name))
    with pytest.raises(EnvironmentLacking, match=r"gpusq-onnx\[train\]") as caught:
        manager.run(MODEL, tmp_path / "out.onnx", parse("prune24{method=magnitude},distill"), RunOptions(DATA))
    assert caught.value.exit_code == 5


@pytest.mark.long
@pytest.mark.parametrize("blind", [pytest.param(False, marks=pytest.mark.long), True])
def test_moved_zeros_never_reach_a_file(blind: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither past the loop's own check, nor past the manager's where that one is off."""
    monkeypatch.setattr(Masks, "apply", lambda self: None)
    monkeypatch.setattr(Masks, "clear_gradients", lambda self: None)
    if blind:
        monkeypatch.setattr(Masks, "verify", lambda self, where: None)
    output = tmp_path / "out.onnx"
    with pytest.raises(PassFailed, match="break 2:4" if blind else "away from zero") as caught:
        manager.run(MODEL, output, parse(f"prune24{{method=magnitude}},distill{{{SHORT}}}"), RunOptions(DATA))
    assert caught.value.exit_code == 4
    assert not output.exists()


def test_patterns_told_from_values() -> None:
    model = io.load(MODEL)
    site = next(site for site in analyse(model).sites if site.role == "fc1")
    assert planning.pattern_of(site, ()) is None
    w: Any = site.read().copy()
    pairs = np.abs(w).reshape(site.out, -1, 4, 2).sum(-1).argsort(-1).argsort(-1) >= 2
    site.write((w * np.repeat(pairs.reshape(site.out, -1), 2, axis=1)).astype(w.dtype))
    assert planning.pattern_of(site, ()) == PAIRS_48
    site.write((w * (np.arange(site.k) % 4 == 1)).astype(w.dtype))
    assert planning.pattern_of(site, ()) == Pattern(1, 4)


def test_a_quantised_file_is_trained_by_qat_and_not_by_distill(tmp_path: Path) -> None:
    quantised = tmp_path / "quantised.onnx"
    manager.run(MODEL, quantised, parse("qdq-int8"), RunOptions(DATA))
    with pytest.raises(UnsupportedModelError, match="distill trains float models"):
        manager.plan(quantised, parse(f"distill{{teacher={MODEL}}}"), RunOptions(DATA))
