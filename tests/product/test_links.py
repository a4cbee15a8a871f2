"""Every relative link of the pages leads to a file that is there, and to a heading that it has."""

import re
from pathlib import Path

import pytest
from places import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub names them: of two equal headings the second ends in -1."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        repeats = sum(1 for other in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other))
        found.add(f"{slug}-{repeats}" if repeats else slug)
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page))):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if not ELSEWHERE.match(link) and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_relative_link_and_anchor_exists(page: Path) -> None:
    assert broken_links(page) == []


def test_the_pages_have_links_to_look_at() -> None:
    assert sum(len(LINK.findall(prose(page))) for page in PAGES) > 60


def test_a_missing_file_and_a_missing_heading_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n## Same\n## Same\n```\n# no heading\n[no link](none)\n```\n")
    links = "[1](#a-b-c) [2](page.md#same-1) [3](https://host/x) [4](none.md) [5](#no-heading) [6](page.md#same-2)\n"
    page.write_text(page.read_text() + links)
    assert broken_links(page) == ["none.md", "#no-heading", "page.md#same-2"]


def test_the_index_lists_every_page_once() -> None:
    listed = [link for link in LINK.findall(prose(ROOT / "docs" / "index.md")) if "/" not in link]
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md")
