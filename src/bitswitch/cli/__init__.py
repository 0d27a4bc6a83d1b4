"""The command line: `bitswitch <command> …`."""

from bitswitch.cli.main import main

__all__ = ["main"]
