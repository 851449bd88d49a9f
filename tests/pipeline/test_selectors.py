"""Selectors: roles, operators, names and paths; a pattern without a match is an error."""

from pathlib import Path

import pytest

from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph import io
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline.selectors import Selector

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    return analyse(io.load(ASSETS / "digits_vit_legacy17.onnx")).sites


def _chosen(sites: list[Site], only: list[str], skip: list[str]) -> list[Site]:
    selector = Selector(only, skip)
    selector.check(sites, "prune24")
    return [site for site in sites if selector.refuses(site) is None]


def test_nothing_given_selects_everything(sites: list[Site]) -> None:
    assert _chosen(sites, [], []) == sites


def test_a_role_an_operator_and_a_path(sites: list[Site]) -> None:
    assert {site.role for site in _chosen(sites, ["fc1"], [])} == {"fc1"}
    assert {site.op for site in _chosen(sites, ["Conv"], [])} == {"Conv"}
    assert {site.block for site in _chosen(sites, ["blocks.0.*"], [])} == {0}


def test_an_initializer_name_and_skip_on_top_of_only(sites: list[Site]) -> None:
    proj = next(site for site in sites if site.role == "proj")
    assert _chosen(sites, [proj.name], []) == [proj]
    assert proj not in _chosen(sites, ["blocks.*"], ["proj"])


def test_the_reason_names_the_selector(sites: list[Site]) -> None:
    head = next(site for site in sites if site.role == "head")
    assert Selector([], ["head"]).refuses(head) == "left out by skip=head"
    assert Selector(["fc1", "fc2"], []).refuses(head) == "not selected by only=fc1;fc2"


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_pattern_without_a_match_is_refused_with_examples(sites: list[Site], option: str) -> None:
    with pytest.raises(NothingMatched, match="blokcs") as caught:
        Selector(**{"only": [], "skip": [], option: ["blokcs.0.*"]}).check(sites, "prune24")
    assert f"prune24.{option}" in str(caught.value)
    assert "head" in str(caught.value)
