"""No link of the documents is dead, and no path that they name is gone."""

import re
from pathlib import Path

import pytest
import yaml
from pages import PAGES, README, ROOT, anchors, links, prose

_NAMED = re.compile(r"`((?:gpusq_onnx|passes|tools|tests|docs|\.ci)/[\w./]*)`")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path):
    dead = []
    for target in links(page):
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_named_exists(page: Path):
    assert [path for path in _NAMED.findall(prose(page)) if not (ROOT / path).exists()] == []


def test_the_readme_names_paths_or_links():
    assert len(links(README)) > 10


def test_every_page_is_in_the_sites_list():
    text = (ROOT / "tools" / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"]))
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page != README)


def test_the_readme_is_read_in_one_go():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_a_dead_link_and_a_dead_anchor_are_seen(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading: 2:4\n\n[a](other.md) [b](#nothing) [c](#a-heading-24)\n\n```text\n[d](not-a-link.md)\n```\n"
    )
    assert links(page) == ["other.md", "#nothing", "#a-heading-24"]
    assert anchors(page) == {"a-heading-24"}
