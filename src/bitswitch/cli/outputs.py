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
    _check_above(option, path)


def check_output_folder(option: str, path: Path | None) -> None:
    """Find out whether files can be written into the folder that an option names.

    Args:
        option: its name, for the message.
        path: the folder, which is made later if it is not there. None if the option was not given.

    Raises:
        ConfigError: the path, or one of the folders above it, is a file.
    """
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{option} is a folder; {path} is a file")
    _check_above(option, path)


def _check_above(option: str, path: Path) -> None:
    above = next((parent for parent in path.parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise ConfigError(f"{option}: {path} cannot be written, {above} is a file")
