"""What the model collections have in common: optional imports, names with close matches, refused options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from bitswitch.errors import ConfigError


def import_optional(module: str, purpose: str) -> ModuleType:
    """Import a module of a package that bitswitch installs only with the extra `vision`.

    Args:
        module: its full name.
        purpose: what it is needed for, as the beginning of the error message.

    Raises:
        ConfigError: the package is not installed, or fails to import.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{purpose} needs the package {package}: pip install 'bitswitch[vision]' ({error})"
        ) from error


def check_name(name: str, known: Collection[str], collection: str) -> None:
    """Raise `ConfigError` with the closest known names unless `name` is known.

    Raises:
        ConfigError: `name` is not in `known`.
    """
    if name in known:
        return
    close = get_close_matches(name, known, n=3)
    if close:
        hint = f"did you mean {', '.join(map(repr, close))}?"
    else:
        first = sorted(known)[:8]
        hint = f"there are {', '.join(map(repr, first))}{' and more' if len(known) > len(first) else ''}"
    raise ConfigError(f"{collection} has no model called {name!r}; {hint}")


def check_options(options: Mapping[str, Any], refused: Collection[str], collection: str) -> None:
    """Refuse constructor options that would read files or the network behind the caller's back.

    Raises:
        ConfigError: one of `options` is in `refused`.
    """
    for name in options:
        if name in refused:
            raise ConfigError(f"{collection}: the option {name!r} is not allowed here; use pretrained= or weights=")


def download_failed(what: str, error: Exception) -> ConfigError:
    """Make the error for pretrained weights that could not be fetched."""
    reason = (str(error).strip().splitlines() or ["no detail"])[0]
    return ConfigError(
        f"cannot get the pretrained weights of {what} ({type(error).__name__}: {reason}). "
        "To work without the network, download the file elsewhere and give it as weights='file.safetensors' (or .pth)"
    )
