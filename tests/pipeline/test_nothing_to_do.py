"""A pass with nothing to do: a warning where others had, an error where none had, whatever `only` spells."""

from pathlib import Path

import onnx
import pytest

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched, SelectorUnmatched
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager, table
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.pipeline.selectors import Selector

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit.onnx"
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=4)
IDLE = "prune24{only=patch_embed}"  # three channels: no group of four


@pytest.mark.parametrize("passes", [f"{IDLE},qdq-int8", f"prune24{{method=magnitude}},{IDLE}"])
def test_a_pass_with_nothing_to_do_beside_one_that_had_is_a_warning(passes: str, tmp_path: Path) -> None:
    planned = manager.plan(MODEL, parse(passes), RunOptions(DATA))
    outcome = manager.run(MODEL, tmp_path / "out.onnx", parse(passes), RunOptions(DATA))
    assert (tmp_path / "out.onnx").is_file()
    for found in (planned, outcome):
        (warning,) = (text for text in found.warnings if "nothing to do" in text)
        assert warning.startswith("prune24 had nothing to do: no weight can be pruned (")
        assert "channels 3 is not a multiple of 4" in warning
        (idle,) = (step for step in found.steps if all(row.skipped for row in step.rows))
        assert len(idle.rows) == len(found.steps[0].rows), "what it looked at, and why it stays"


def test_what_is_pruned_already_is_a_warning_too(tmp_path: Path) -> None:
    pruned = tmp_path / "pruned.onnx"
    manager.run(MODEL, pruned, parse("prune24{method=magnitude}"), RunOptions(DATA))
    outcome = manager.run(pruned, tmp_path / "out.onnx", parse("prune24{method=magnitude},qdq-int8"), RunOptions(DATA))
    assert any("the pass 'prune24' changed nothing" in text for text in outcome.warnings)
    assert any("2:4" in fact for fact in outcome.steps[0].facts), "the facts hold for later passes"


def test_where_no_pass_has_anything_to_do_the_first_says_why(tmp_path: Path) -> None:
    for make in (
        lambda: manager.run(MODEL, tmp_path / "out.onnx", parse(f"{IDLE},canonical"), RunOptions(DATA)),
        lambda: manager.plan(MODEL, parse(IDLE), RunOptions(DATA)),
    ):
        with pytest.raises(NothingMatched, match="no weight can be pruned") as caught:
            make()
        assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_unless_that_is_allowed(tmp_path: Path) -> None:
    outcome = manager.run(MODEL, tmp_path / "out.onnx", parse(f"{IDLE},canonical"), RunOptions(DATA, allow_noop=True))
    assert sum("nothing" in text for text in outcome.warnings) == 2
    before, after = (onnx.load(path).graph.initializer for path in (MODEL, tmp_path / "out.onnx"))
    assert {t.name: t.raw_data for t in after} == {t.name: t.raw_data for t in before}
    assert manager.plan(MODEL, parse(IDLE), RunOptions(DATA, allow_noop=True)).warnings


@pytest.mark.parametrize("allow", [False, True])
def test_a_typo_is_an_error_whatever_else_is_done(allow: bool, tmp_path: Path) -> None:
    for passes in ("prune24,qdq-int8{only=fc7}", "prune24,fp16{keep=LayerNorm}"):
        with pytest.raises(SelectorUnmatched, match=r"fc7|LayerNorm"):
            manager.run(MODEL, tmp_path / "out.onnx", parse(passes), RunOptions(DATA, allow_noop=allow))
    assert list(tmp_path.iterdir()) == []


def test_training_after_a_quantisation_with_nothing_to_do_has_nothing_to_do_either(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    passes = "prune24{method=magnitude},qdq-int8{only=patch_embed,skip=conv},qat{epochs=1}"
    sites = analyse(io.load(MODEL)).sites
    skip = next(site.name for site in sites if site.role == "patch_embed")
    outcome = manager.run(MODEL, tmp_path / "out.onnx", parse(passes.replace("conv", f'"{skip}"')), RunOptions(DATA))
    assert [text.split(" ")[0] for text in outcome.warnings if "nothing to do" in text] == ["qdq-int8", "qat"]


@pytest.mark.long
@pytest.mark.parametrize("plan", [False, True])
def test_training_after_a_pruning_with_nothing_to_do_has_nothing_to_do_either(plan: bool, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    passes = parse(f"{IDLE},distill{{steps=1}},qdq-int8,qat{{steps=1,batch=2,against=dense,factors=none}}")
    options = RunOptions(DATA)
    run = manager.plan(MODEL, passes, options) if plan else manager.run(MODEL, tmp_path / "o.onnx", passes, options)
    assert [text.split(" ")[0] for text in run.warnings if "nothing to do" in text] == ["prune24", "distill"]


def test_a_model_that_was_pruned_elsewhere_is_not_its_own_teacher(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pruned = tmp_path / "pruned.onnx"
    manager.run(MODEL, pruned, parse("prune24{method=magnitude}"), RunOptions(DATA))
    passes = parse("prune24{method=magnitude},distill{steps=1}")
    with pytest.raises(NothingMatched, match="changed nothing"):
        manager.run(pruned, tmp_path / "out.onnx", passes, RunOptions(DATA))
    outcome = manager.run(pruned, tmp_path / "out.onnx", passes, RunOptions(DATA, allow_noop=True))
    assert any("distill had nothing to do" in text for text in outcome.warnings)


def test_one_value_for_a_list_is_a_list_of_it() -> None:
    for text in ("prune24{only=fc1}", "prune24{only=[fc1]}", 'qdq-int8{only="fc1"}'):
        (made,) = table.resolve(parse(text))
        assert made.options.only == ["fc1"]
    (made,) = table.resolve(parse("fp16{keep=Softmax}"))
    assert made.options.keep == ["Softmax"]


def test_roles_and_operators_in_any_case() -> None:
    sites = analyse(io.load(MODEL)).sites

    def chosen(pattern: str) -> set[str]:
        selector = Selector([pattern], [])
        return {site.name for site in sites if selector.refuses(site) is None}

    assert chosen("FC1") == chosen("fc1") != set()
    assert chosen("matmul") | chosen("GEMM") == {site.name for site in sites if site.op in ("MatMul", "Gemm")}
    assert chosen("Conv") == {site.name for site in sites if site.op == "Conv"} != set()
    assert chosen("conv") == {site.name for site in sites if site.role == "conv"}
    assert chosen("CONV") == chosen("conv"), "where both could be meant, roles come first"
