"""Every `bitswitch` command line of the documentation is understood by the command line's own parser."""

from __future__ import annotations

import re
import shlex
from typing import Any, NoReturn

import pytest
import tyro

from bitswitch.cli import main
from tests.docs._markdown import blocks, pages

SHELLS = ("bash", "sh", "shell", "console")


class _ParsedError(BaseException):
    """Ends a command once its options are read; no `except Exception` of the command line holds it."""


def _commands() -> list[str]:
    found = []
    for path in pages():
        for block in blocks(path.read_text("utf-8")):
            lines = block.text.replace("\\\n", " ").splitlines() if block.language in SHELLS else []
            found += [line.removeprefix("$ ") for line in lines if _arguments(line.removeprefix("$ ")) is not None]
    return found


def _arguments(line: str) -> list[str] | None:
    """Return the words after `bitswitch`, or None if a line is no such command."""
    match = re.match(r"(?:\w+=\S+ )*(?:(?:python|torchrun)\b.* -m )?bitswitch\b(.*)", line)
    return None if match is None else shlex.split(match[1], comments=True)


@pytest.mark.parametrize("line", _commands())
def test_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = tyro.cli

    def stop_after_parsing(*args: Any, **kwargs: Any) -> NoReturn:
        parse(*args, **kwargs)
        raise _ParsedError

    monkeypatch.setattr(tyro, "cli", stop_after_parsing)
    try:
        code = main(_arguments(line))
    except _ParsedError:
        return
    # Help ends before there are options.
    assert code == 0


def test_a_wrong_command_is_noticed() -> None:
    assert main(["train", "digits", "--no-such-option"]) == 2
