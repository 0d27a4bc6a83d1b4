"""Compiled kernels, where the package was built with a compiler and the processor has an instruction set for them.

The environment variable BITSWITCH_KERNELS chooses: "auto" (the default: the best that there is), "reference" (plain
PyTorch everywhere), or an instruction set: "scalar", "avx2", "avx512", "neon".
"""

from __future__ import annotations

import os
import warnings
from types import ModuleType

from bitswitch.errors import BitswitchWarning, ConfigError

VARIABLE = "BITSWITCH_KERNELS"
CHOICES = ("auto", "reference", "scalar", "avx2", "avx512", "neon")


def _load() -> ModuleType | None:
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(CHOICES)}; got {choice!r}")
    if choice == "reference":
        return None
    try:
        # PyTorch first: the kernels run on the threads that it brings.
        import torch  # noqa: F401

        from bitswitch.kernels import _native  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        if choice != "auto":
            raise ConfigError(f"{VARIABLE}={choice}, but the compiled kernels cannot be loaded: {error}") from None
        warnings.warn(
            "bitswitch was installed without compiled kernels, so everything runs on the slower PyTorch references; "
            f"install it where a C++ compiler is found, or set {VARIABLE}=reference to accept this ({error})",
            BitswitchWarning,
            stacklevel=2,
        )
        return None
    if choice != "auto":
        try:
            _native.set_isa(choice)
        except ValueError as error:
            raise ConfigError(f"{VARIABLE}={choice}: {error}") from None
    return _native


native: ModuleType | None = _load()
"""The compiled module, or None where references run instead."""


def instruction_set() -> str:
    """Return what kernels run on: "reference" or the name of an instruction set."""
    return "reference" if native is None else native.active_isa()
