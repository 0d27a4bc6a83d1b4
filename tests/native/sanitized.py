"""A pytest plugin that has the kernels loaded from the file that BITSWITCH_NATIVE names; see `make sanitize`."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

NAME = "bitswitch.kernels._native"


class Finder(importlib.abc.MetaPathFinder):
    """Finds the kernels, and nothing else, in one file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, self.path) if fullname == NAME else None


# At once: files named conftest.py import the package before pytest calls any hook.
sys.meta_path.insert(0, Finder(os.environ["BITSWITCH_NATIVE"]))


def pytest_sessionstart() -> None:
    import bitswitch.kernels

    native = bitswitch.kernels.native
    assert native is not None
    assert os.path.samefile(native.__file__ or "", os.environ["BITSWITCH_NATIVE"])
