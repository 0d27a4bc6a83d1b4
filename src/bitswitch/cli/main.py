"""Finds the command, and turns its errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

from bitswitch.errors import BitswitchError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

# Name: (module with a function `run(arguments)`, what it does). Imported only when called, so that help is quick.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("bitswitch.cli.train", "Run a recipe: float network, joint training, checkpoint, report."),
    "report": ("bitswitch.cli.report", "Compare finished runs, and write their pages again."),
    "evaluate": ("bitswitch.cli.evaluate", "Measure the accuracy of a checkpoint at any precision."),
    "inspect": ("bitswitch.cli.inspect", "Show what a checkpoint holds: layers, sizes, files, codes."),
    "sensitivity": ("bitswitch.cli.sensitivity", "Estimate how sensitive each layer is."),
    "search": ("bitswitch.cli.search", "Choose a width for every layer within budgets."),
    "frontier": ("bitswitch.cli.frontier", "Measure SubNets of every size: accuracy against bits, bytes, BitOPs."),
    "bench": ("bitswitch.cli.bench", "Measure latency, memory and switching on this machine, at each width."),
}
TRACEBACK_FLAG = "--traceback"
TRACEBACK_VARIABLE = "BITSWITCH_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0 for success, 1 for an error, 2 for wrong usage, 130 if interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = TRACEBACK_FLAG in words or os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")
    words = [word for word in words if word != TRACEBACK_FLAG]
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return OK if words else USAGE
    if words[0] == "--version":
        print(f"bitswitch {_version()}")
        return OK
    if words[0] not in COMMANDS:
        close = get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
        return _fail(f"no command is called {words[0]!r}; {hint}", USAGE)
    try:
        importlib.import_module(COMMANDS[words[0]][0]).run(words[1:])
        return OK
    except SystemExit as request:
        # tyro ends the process after help (0) and wrong usage (2).
        return request.code if isinstance(request.code, int) else OK if request.code is None else FAILED
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has left; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        return _fail(_one_line(error), FAILED)


def _fail(message: str, code: int) -> int:
    print(f"bitswitch: {message}", file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, BitswitchError):
        return f"error: {text}"
    return f"error: {type(error).__name__}: {text or 'no message'} ({TRACEBACK_FLAG} shows where)"


def _usage() -> str:
    lines = [
        "usage: bitswitch <command> [options]",
        "",
        "Train a network once at several bit-widths, store it once as integers, run it at any of them.",
        "",
        "commands:",
        *(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()),
        "",
        "options:",
        "  -h, --help   show this, or the options of a command",
        "  --version    show the version",
        "  --traceback  show where an error comes from (also BITSWITCH_TRACEBACK=1)",
    ]
    return "\n".join(lines)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("bitswitch")
    except PackageNotFoundError:
        return "(not installed)"
