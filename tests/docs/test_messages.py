"""The messages that the troubleshooting page lists are messages of the code."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs._markdown import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)`(?! \(PyTorch\))", PAGE, re.MULTILINE)


def _literals() -> str:
    """Return all string constants of the package; the parts of an f-string are constants of their own."""
    found: list[str] = []
    for path in sorted((ROOT / "src" / "bitswitch").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        found += [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    return "\0".join(found)


LITERALS = _literals()


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_in_the_code(message: str) -> None:
    parts = [part.strip() for part in message.split("…")]
    assert [part for part in parts if part not in LITERALS] == []
    assert max(map(len, parts)) > 8
