"""Modes and precisions of prepared models that come back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bitswitch.layers.modes import in_mode
from bitswitch.layers.table import state_of
from bitswitch.switching import switch


@contextmanager
def preserved(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Like `in_mode` for a prepared model, which in addition returns to the precision that it had."""
    precision = state_of(model, engines=True).precision
    try:
        with in_mode(model, training=training):
            yield
    finally:
        switch(model, precision)
