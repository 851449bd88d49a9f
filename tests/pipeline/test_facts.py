"""Facts that travel in a reproducer's model: every kind comes back as it was, and other text is refused."""

import pytest

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.pipeline.facts import ExplicitQuantisation, HalfPrecision, SparseWeight, dumps, loads


def test_each_kind_of_fact_comes_back_as_it_was() -> None:
    facts = [SparseWeight("blocks.0.fc1.weight", "4:8pair"), ExplicitQuantisation(), HalfPrecision()]
    assert loads(dumps(facts)) == facts


@pytest.mark.parametrize("text", ["", "[1]", '[{"fact": "unheard of"}]', '[{"fact": "sparse weight"}]'])
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedModelError, match="facts"):
        loads(text)
