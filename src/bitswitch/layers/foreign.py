"""Classes of other libraries, known by name so that nothing is imported before one is met."""

from __future__ import annotations

import importlib
from typing import Any


def qualified_name(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def import_target(target: str) -> Any:
    """Import "package.module:name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
