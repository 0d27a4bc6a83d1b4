"""Where commands write to, looked at before they begin what takes time."""

from __future__ import annotations

from pathlib import Path

from bitswitch.errors import ConfigError


def check_output_file(option: str, path: Path | None) -> None:
    """Find out whether a file can be written where an option says.

    Args:
        option: its name, for the message.
        path: the file; folders above it are made later. None if the option was not given.

    Raises:
        ConfigError: the path is a folder or a device, or one of the folders above it is a file.
    """
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise ConfigError(f"{option} is a file; {path} is {'a folder' if path.is_dir() else 'a device or pipe'}")
    above = next((parent for parent in path.parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise ConfigError(f"{option}: {path} cannot be written, {above} is a file")
