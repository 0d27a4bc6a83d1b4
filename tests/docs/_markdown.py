"""Code blocks and links of the project's Markdown pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page that its text begins at."""

    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """Return the pages whose code is executed."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def all_markdown() -> list[Path]:
    """Return every Markdown file of the project."""
    inside = [
        path
        for folder in ("docs", "src", "benchmarks", "tests", "zoo")
        for path in sorted((ROOT / folder).rglob("*.md"))
    ]
    return [*sorted(ROOT.glob("*.md")), *inside]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [Block(m[1], m[2], page.count("\n", 0, m.start(2)) + 1) for m in _FENCE.finditer(page)]


def links(page: str) -> list[str]:
    """Return the targets of the inline links of a page, outside code."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page))
    return [match[1] for match in _LINK.finditer(prose)]


def anchors(page: str) -> set[str]:
    """Return the fragments that the headings of a page can be reached by, as GitHub makes them."""
    headings = [match[1] for match in _HEADING.finditer(_FENCE.sub("", page))]
    plain = [re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text).replace("`", "").strip().lower() for text in headings]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in plain}
