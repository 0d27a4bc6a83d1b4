"""Commands, exit codes, and errors of one line."""

from __future__ import annotations

import sys
import types

import pytest

from bitswitch.cli import main
from bitswitch.cli.main import COMMANDS
from bitswitch.errors import ConfigError


def command(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    module = types.ModuleType("a_command")

    def run(arguments: list[str]) -> None:
        if error is not None:
            raise error
        print(arguments)

    module.run = run  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "a_command", module)
    monkeypatch.setitem(COMMANDS, "try", ("a_command", "Try."))
    monkeypatch.delenv("BITSWITCH_TRACEBACK", raising=False)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_nothing_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bitswitch ")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "bitswitch: no command is called 'trian'; did you mean 'train'?\n"


def test_arguments_reach_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, None)
    assert main(["try", "--traceback", "a", "--b"]) == 0
    assert capsys.readouterr().out == "['a', '--b']\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("no such\nthing"), 1, "bitswitch: error: no such thing\n"),
        (ZeroDivisionError("oh"), 1, "bitswitch: error: ZeroDivisionError: oh (--traceback shows where)\n"),
        (KeyboardInterrupt(), 130, "bitswitch: interrupted\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_errors_become_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    command(monkeypatch, error)
    assert main(["try"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("by_flag", [True, False])
def test_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_flag: bool
) -> None:
    command(monkeypatch, ConfigError("no"))
    if not by_flag:
        monkeypatch.setenv("BITSWITCH_TRACEBACK", "1")
    assert main(["try", "--traceback"] if by_flag else ["try"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "evaluate", "inspect", "bench"])
def test_commands_have_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: bitswitch {name}" in capsys.readouterr().out


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--joint.speed", "3"]) == 2
    assert main(["train", "digits", "--joint.epochs", "many"]) == 2
    assert main(["inspect"]) == 2
