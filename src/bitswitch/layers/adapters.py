"""Modules that read the weights of their layers instead of calling them, rewritten so that they call them."""

from __future__ import annotations

from torch import nn


def adapt(model: nn.Module) -> None:
    """Rewrite, in place, the modules of a float model that hide weighted layers; the float function stays the same."""
    del model
