"""What cannot come later in a pipeline: refused by `plan` and by `apply` alike, and not after an hour of training."""

from pathlib import Path

import pytest

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.pipeline import execute, manager, table
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit.onnx"
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=4)
QUANTISING = ("qdq-int8", "qdq-int4", "int4-weights", "qdq-fp8", "qdq-nvfp4")
FLOAT = ("prune24", "prune48pair", "prune-nm", "permute", "distill", *QUANTISING)


@pytest.mark.parametrize("earlier", QUANTISING)
@pytest.mark.parametrize("later", FLOAT)
def test_a_pass_of_float_models_comes_before_what_quantises(earlier: str, later: str) -> None:
    with pytest.raises(UsageError, match=f"{later} takes a float model, and {earlier} comes before it"):
        execute.well_ordered(table.resolve(parse(f"{earlier},canonical,{later}")))
    if later not in QUANTISING:
        execute.well_ordered(table.resolve(parse(f"{later},canonical,{earlier}")))


@pytest.mark.parametrize(
    ("passes", "hint"),
    [
        ("prune24,qdq-int8,permute", "put permute before qdq-int8"),
        ("qdq-nvfp4,fp16", "leave one of the two out"),
        ("fp16,qdq-nvfp4", "leave one of the two out"),
        ("qdq-int8,qdq-fp8", "leave one of the two out"),
        ("int4-weights{runtime=onnxruntime},qat", "leave one of the two out"),
    ],
)
def test_both_verbs_say_so_before_they_read_the_model(passes: str, hint: str, tmp_path: Path) -> None:
    missing = tmp_path / "none.onnx"
    for make in (
        lambda: manager.plan(missing, parse(passes), RunOptions(DATA)),
        lambda: manager.run(missing, tmp_path / "out.onnx", parse(passes), RunOptions(DATA)),
    ):
        with pytest.raises(UsageError, match="comes before it") as caught:
            make()
        assert hint in str(caught.value)


@pytest.mark.parametrize("training", ["qat", "distill"])
def test_a_file_of_matmulnbits_is_not_trained(training: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed.onnx"
    manager.run(MODEL, packed, parse("int4-weights{runtime=onnxruntime}"), RunOptions(DATA))
    with pytest.raises(UnsupportedModelError, match="MatMulNBits is not trained"):
        manager.plan(packed, parse(training), RunOptions(DATA))


@pytest.mark.parametrize("passes", ["prune24,prune48pair", "prune48pair,prune24"])
def test_a_pattern_is_not_broken_by_another(passes: str, tmp_path: Path) -> None:
    for make in (
        lambda: manager.plan(MODEL, parse(passes), RunOptions(DATA)),
        lambda: manager.run(MODEL, tmp_path / "out.onnx", parse(passes), RunOptions(DATA)),
    ):
        with pytest.raises(UnsupportedModelError, match="would no longer be"):
            make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "passes",
    [
        "prune-nm{pattern=1:4},prune24",
        "prune24{only=fc1},prune48pair{skip=fc1}",
        "prune24{method=magnitude},prune48pair{method=magnitude}",
    ],
)
def test_where_both_hold_there_is_nothing_to_refuse(passes: str) -> None:
    planned = manager.plan(MODEL, parse(passes), RunOptions(DATA))
    first, second = planned.steps
    assert first.facts and second.facts, "both passes prune"


@pytest.mark.parametrize("name", ["canonical", "fold"])
def test_a_plan_of_nothing_is_an_error_as_its_run_is(name: str, tmp_path: Path) -> None:
    done = tmp_path / "done.onnx"
    manager.run(MODEL, done, parse(name), RunOptions(DATA, allow_noop=True))
    for make in (
        lambda: manager.plan(done, parse(name), RunOptions(DATA)),
        lambda: manager.run(done, tmp_path / "out.onnx", parse(name), RunOptions(DATA)),
    ):
        with pytest.raises(UnsupportedModelError, match=r"can be folded|has the forms already"):
            make()
