"""Text from files that nobody vouches for."""

import pytest

from gpusq_onnx.parsing import parse_json, parse_toml
from gpusq_onnx.pipeline import recipe

MARK = "\ufeff"  # what Windows' editors begin UTF-8 with


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse_json(MARK + "[1]") == parse_json((MARK + "[1]").encode()) == [1]
    assert parse_toml(MARK + "a = 1") == {"a": 1}


def test_a_recipe_may_begin_with_one() -> None:
    text = '[[pass]]\nname = "prune24"\n'
    assert recipe.loads(MARK + text) == recipe.loads(text)


@pytest.mark.parametrize("parse", [parse_json, parse_toml])
def test_one_in_the_middle_is_an_error(parse: type) -> None:
    with pytest.raises(ValueError, match=r"line 1|column"):
        parse("1" + MARK)
