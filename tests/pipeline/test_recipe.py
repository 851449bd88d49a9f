"""The recipe: the same pipeline as TOML, both ways, and errors that name the file."""

from pathlib import Path

import pytest
from hypothesis import given
from test_grammar import PIPELINES, typed

from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline import recipe
from gpusq_onnx.pipeline.grammar import Pipeline, parse


@given(PIPELINES)
def test_round_trip_through_toml(pipeline: Pipeline) -> None:
    again = recipe.loads(recipe.dumps(pipeline))
    assert again == pipeline
    for before, after in zip(pipeline.steps, again.steps, strict=True):
        assert {k: typed(v) for k, v in before.options.items()} == {k: typed(v) for k, v in after.options.items()}


def test_text_of_a_recipe() -> None:
    roles = 'roles = [\n    "fc1",\n    "fc2",\n]\n'
    text = f'[[pass]]\nname = "prune24"\nmethod = "sparsegpt"\n{roles}\n[[pass]]\nname = "qdq-int8"\n'
    pipeline = parse("prune24{method=sparsegpt,roles=[fc1;fc2]},qdq-int8")
    assert recipe.dumps(pipeline) == text
    assert recipe.loads(text) == pipeline


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.toml.*does not exist"):
        recipe.load(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[pass]", "not valid TOML"),
        ("", "holds no"),
        ("pass = 3", "holds no"),
        ("pass = []", "holds no"),
        ("[[pass]]\nmethod = 1", "has no name"),
        ("[[pas]]\nname = 'p'", "did you mean 'pass'"),
        ("[[pass]]\nname = 'p'\nwhen = 2020-01-01", "flat list"),
        ("[[pass]]\nname = 'p'\nx = nan", "finite"),
        ("[[pass]]\nname = 'p'\n[pass.options]\nx = 1", "flat list"),
    ],
)
def test_bad_recipe_names_the_file(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        recipe.load(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
