"""Every Python block of the documentation runs, and prints what the page shows."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from tests.docs._markdown import ROOT, blocks, pages

PAGES = [path for path in pages() if any(block.language == "python" for block in blocks(path.read_text("utf-8")))]


def run_page(path: Path) -> None:
    """Run the Python blocks of a page in one namespace; a `text` block right after one is its output."""
    found = blocks(path.read_text("utf-8"))
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block.language != "python":
            continue
        # Line numbers of the page, so that a traceback points there.
        code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, namespace)
        if following is not None and following.language == "text":
            shown = [line.rstrip() for line in following.text.strip().splitlines()]
            printed = [line.rstrip() for line in output.getvalue().strip().splitlines()]
            assert printed == shown, f"{path.name}, line {following.line}: this is not what the block above prints"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(path)


def test_a_wrong_output_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="line 6"):
        run_page(page)
