"""Which form of a model a precision trains in: compiled or as it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bitswitch.errors import BitswitchWarning
from bitswitch.precision import Precision


class CompiledWidths:
    """A model under torch.compile, with one graph for every uniform width.

    Widths are constants of a graph, so a graph holds for one width, and the first step at a width compiles it. There
    are too many per-layer precisions to compile each: they run as the model itself, with a warning the first time.

    Args:
        model: a prepared model, wrapped in DistributedDataParallel or not.
        options: arguments of torch.compile.
    """

    def __init__(self, model: nn.Module, options: Mapping[str, Any]) -> None:
        self._model = model
        compiled = torch.compile(model, **options)
        assert isinstance(compiled, nn.Module)
        self._compiled = compiled
        self._warned = False

    def at(self, precision: Precision) -> nn.Module:
        """Return the module to call at a precision."""
        if precision.is_uniform:
            return self._compiled
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"precisions of single layers, such as {precision}, train without torch.compile: "
                "every one of them would be a graph of its own",
                BitswitchWarning,
                stacklevel=2,
            )
        return self._model
