"""The Python API: models and data in every form that it takes give the same bytes, and what comes back can be read."""

import copy
import hashlib
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import gpusq_onnx
from gpusq_onnx import Context, DataOptions, Model, Pass, PassOptions, PlanContext, PlanRow, errors
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.passes.prune import Prune24, PruneOptions
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.workflows import samples

ASSETS = Path(__file__).parents[1] / "assets"
MODEL, TRAIN, TEST = ASSETS / "digits_vit.onnx", ASSETS / "digits_train.npz", ASSETS / "digits_test.npz"
PASSES = "prune24{method=magnitude},qdq-int8"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    """The first 32 images, as the model takes them."""
    return np.load(TRAIN)["pixel_values"][:32]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def as_the_command_line(tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.float32]) -> Path:
    """The output of the manager, on the same images from a file."""
    folder = tmp_path_factory.mktemp("reference")
    np.savez(folder / "x.npz", pixel_values=pixels)
    manager.run(MODEL, folder / "out.onnx", parse(PASSES), RunOptions(DataOptions(path=folder / "x.npz")))
    return folder / "out.onnx"


def _generated(pixels: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    yield from (pixels[start : start + 10] for start in range(0, len(pixels), 10))


@pytest.mark.long
def test_the_model_is_asked_once_for_the_input_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = samples.io.load
    monkeypatch.setattr(samples.io, "load", lambda path: loaded.append(path) or load(path))
    pixels = np.load(TEST)["pixel_values"][:6]
    with samples.opened(onnx.load(MODEL), iter(pixels[:, None])) as options, np.load(options.path) as stored:
        assert np.array_equal(stored["pixel_values"], pixels)
    assert len(loaded) == 1


@pytest.mark.parametrize("form", ["array", "dict", "list", "generator"])
def test_data_from_memory_gives_the_bytes_that_the_same_file_gives(
    form: str, pixels: NDArray[np.float32], as_the_command_line: Path, tmp_path: Path
):
    forms: dict[str, Any] = {
        "array": pixels,
        "dict": {"pixel_values": pixels},
        "list": [{"pixel_values": pixels[:5]}, {"pixel_values": pixels[5:]}],
        "generator": _generated(pixels),
    }
    result = gpusq_onnx.compress(MODEL, PASSES, data=forms[form], output=tmp_path / "out.onnx")
    assert digest(tmp_path / "out.onnx") == digest(as_the_command_line)
    assert result.report["data"]["options"]["path"] == "data.npz"


@pytest.mark.parametrize("form", ["proto", "loaded"])
def test_a_model_from_memory_gives_the_model_that_its_file_gives(
    form: str, pixels: NDArray[np.float32], as_the_command_line: Path, tmp_path: Path
):
    model: Any = onnx.load(MODEL) if form == "proto" else gpusq_onnx.load(MODEL)
    kept = model.SerializeToString(deterministic=True) if form == "proto" else None
    result = gpusq_onnx.compress(model, PASSES, data=pixels)
    assert result.report["input"]["path"] == "model.onnx" and result.report["output"]["path"] == "model.gpusq.onnx"
    found, wanted = result.model, onnx.load(as_the_command_line)
    del found.metadata_props[:], wanted.metadata_props[:]  # the input's hash
    assert found.graph == wanted.graph
    assert kept is None or kept == model.SerializeToString(deterministic=True)


def test_a_result_in_memory_leaves_no_file_and_can_be_saved(pixels: NDArray[np.float32], tmp_path: Path):
    result = gpusq_onnx.compress(MODEL, PASSES, data=pixels)
    scratch = result.path
    assert scratch.exists()
    assert result.save(tmp_path / "kept.onnx") == digest(tmp_path / "kept.onnx") == digest(scratch)
    del result
    assert not scratch.exists()


def test_a_result_says_what_was_done_and_shows_it(pixels: NDArray[np.float32]):
    result = gpusq_onnx.compress(MODEL, PASSES, data=pixels)
    assert result.pipeline == PASSES
    assert {row.decision for row in result.plan.rows} >= {"prune", "skip"}
    assert [step.name for step in result.steps] == ["prune24", "qdq-int8"]
    assert json.loads(json.dumps(result.report))["pipeline"] == PASSES
    shown = result._repr_html_()
    assert "<table>" in shown and "bit operations" in shown
    assert "# digits_vit.gpusq.onnx" in str(result)


def test_what_a_notebook_shows_is_escaped(tmp_path: Path):
    path = tmp_path / "<script>.onnx"
    path.write_bytes(MODEL.read_bytes())
    assert "<script>" not in gpusq_onnx.plan(path, "prune24")._repr_html_()


@pytest.mark.long
def test_a_result_is_checked_on_its_own_data_or_on_others(pixels: NDArray[np.float32]):
    result = gpusq_onnx.compress(MODEL, PASSES, data=pixels)
    own = result.check()
    assert own.comparison.samples == len(pixels)
    assert f"# digits_vit.gpusq.onnx against {MODEL}" in str(own)
    assert ".save(FILE)" in str(own) and "gpusq-onnx build" not in str(own)
    found = result.check(data=TEST, data_options={"samples": 40}, gates={"min_agreement": 0.5})
    assert found.comparison.samples == 40 and found.passed
    with pytest.raises(errors.GateFailed, match="at least 1 asked"):
        result.check(data=TEST, data_options={"samples": 40}, gates={"min_cosine": 1.0}).require()
    with pytest.raises(errors.UsageError, match="no gate named 'min_cosin'"):
        result.check(gates={"min_cosin": 1.0})


def test_a_result_without_a_file_is_not_pickled(tmp_path: Path):
    result = gpusq_onnx.compress(MODEL, "prune24{method=magnitude}")
    with pytest.raises(errors.UsageError, match="output=FILE"):
        pickle.dumps(result)
    assert copy.copy(result) is copy.deepcopy(result) is result
    kept = gpusq_onnx.compress(MODEL, "prune24{method=magnitude}", output=tmp_path / "small.onnx")
    again = pickle.loads(pickle.dumps(kept))
    assert again.path == kept.path and again.model == result.model


def test_data_that_is_at_its_end_is_asked_for_again(pixels: NDArray[np.float32]):
    result = gpusq_onnx.compress(MODEL, PASSES, data=_generated(pixels))
    with pytest.raises(errors.UsageError, match="at its end"):
        result.check()


def test_no_data_is_warned_of():
    assert "NO DATA" in " ".join(gpusq_onnx.compress(MODEL, "qdq-int8").warnings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "this is no data"),
        ([], "the data is empty"),
        ([{"pixel_values": np.zeros((1, 3, 32, 32))}, {"x": np.zeros(1)}], "has other names"),
        ([np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 3, 16, 16), np.float32)], "another type or shape"),
        ([np.float32(1)], "no rows of numbers"),
        ([np.array([None])], "no rows of numbers"),
    ],
)
def test_data_that_is_none_is_refused(data: Any, message: str):
    with pytest.raises(errors.UsageError, match=message):
        gpusq_onnx.compress(MODEL, PASSES, data=data)


def test_a_tensor_is_one_array_and_not_a_row_of_batches():
    torch = pytest.importorskip("torch")
    x = torch.zeros(4, 3, 32, 32)
    with samples.opened(MODEL, x) as options:
        assert np.load(str(options.path))["pixel_values"].shape == (4, 3, 32, 32)
    with pytest.raises(errors.UsageError, match="cannot become an array") as caught:
        gpusq_onnx.compress(MODEL, PASSES, data=x.requires_grad_())
    assert "detach().cpu()" in str(caught.value)


def test_an_array_of_another_shape_names_the_input():
    with pytest.raises(errors.UnsupportedDataError, match=r"^data does not fit the model's input"):
        gpusq_onnx.compress(MODEL, PASSES, data=np.zeros((2, 3, 16, 16), np.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpusq_onnx.inspect(3), "no model"),  # type: ignore[arg-type]
        (lambda: gpusq_onnx.compress(MODEL, 3), "says no passes"),  # type: ignore[arg-type]
        (lambda: gpusq_onnx.compress(MODEL, []), "says no passes"),
        (lambda: gpusq_onnx.compress(MODEL, PASSES, data_options={"sampels": 3}), "sampels"),
        (lambda: gpusq_onnx.compress(MODEL, PASSES, data=DataOptions(), data_options={"crop": 3}), "given twice"),
        (lambda: gpusq_onnx.compress(MODEL, PASSES, finetune=1, finetune_steps=1), "both say how long"),
        (lambda: gpusq_onnx.bench([MODEL], backend="tpu"), "no backend named"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(call: Any, message: str):
    with pytest.raises(errors.UsageError, match=message):
        call()


class Negate(Pass[PassOptions]):
    """A pass that no table has: each weight changes its sign."""

    name = "negate"
    summary = "weights change their sign"
    source = "this file"

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        return [PlanRow(s.name, s.path, s.role, s.op, (s.out, s.k), "negate", "why not") for s in structure.sites]

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        for site in structure.sites:
            site.write(-site.read())


def test_a_pass_of_the_caller_runs_among_ours():
    result = gpusq_onnx.compress(MODEL, [Negate, Prune24(PruneOptions(method="magnitude")), "qdq-int8"])
    assert result.pipeline == "negate,prune24{method=magnitude},qdq-int8"
    twice = gpusq_onnx.compress(MODEL, [Negate(PassOptions()), Negate])
    assert twice.model.graph == gpusq_onnx.load(MODEL) or twice.steps[1].name == "negate"


def test_a_pass_with_a_name_of_ours_is_refused():
    class Impostor(Negate):
        name = "prune24"

    with pytest.raises(errors.UsageError, match="that of another pass"):
        gpusq_onnx.compress(MODEL, Impostor)


def test_a_recipe_is_a_path(tmp_path: Path):
    (tmp_path / "r.toml").write_text('[[pass]]\nname = "prune24"\n')
    assert gpusq_onnx.plan(MODEL, tmp_path / "r.toml").pipeline == "prune24"


@pytest.mark.long
def test_models_are_packed_restored_inspected_and_timed(pixels: NDArray[np.float32], tmp_path: Path):
    result = gpusq_onnx.compress(MODEL, PASSES, data=pixels, output=tmp_path / "small.onnx")
    gpusq_onnx.pack(result.path, tmp_path / "small.gpusq")
    assert digest(gpusq_onnx.unpack(tmp_path / "small.gpusq", tmp_path / "again.onnx")) == digest(result.path)
    assert gpusq_onnx.inspect(result.model).kernels == gpusq_onnx.inspect(result.path).kernels
    assert gpusq_onnx.inspect(result.load()).kernels == gpusq_onnx.inspect(result.path).kernels
    timed = gpusq_onnx.bench([result.model], backend="onnxruntime", batches=[1], rounds=3)
    assert any(row.given for row in timed.rows)


def test_every_public_function_is_typed_and_says_what_it_does():
    for name in gpusq_onnx.__all__:
        found = getattr(gpusq_onnx, name)
        assert found.__doc__, name
        if callable(found) and not isinstance(found, type):
            assert "return" in get_type_hints(found), name
    assert set(gpusq_onnx.__all__) <= set(dir(gpusq_onnx))
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        gpusq_onnx.compres  # type: ignore[attr-defined]  # noqa: B018


def test_every_public_name_is_in_the_document():
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in gpusq_onnx.__all__ if f"`{name}" not in page] == []
