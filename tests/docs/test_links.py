"""Links between the pages of the project lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs._markdown import ROOT, all_markdown, anchors, links


@pytest.mark.parametrize("path", all_markdown(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_resolve(path: Path) -> None:
    page = path.read_text("utf-8")
    broken = []
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, fragment = link.partition("#")
        file = path.parent / target if target else path
        if not file.exists() or (
            fragment and file.suffix == ".md" and fragment not in anchors(file.read_text("utf-8"))
        ):
            broken.append(link)
    assert not broken


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index.read_text("utf-8"))}
    assert {path.resolve() for path in (ROOT / "docs").glob("*.md")} - linked == {index.resolve()}


def test_links_and_anchors_are_found() -> None:
    page = "# A `b` (c)\n[x](y.md#z) `[no](no.md)`\n```text\n[no](no.md)\n# no\n```\n"
    assert links(page) == ["y.md#z"]
    assert anchors(page) == {"a-b-c"}
