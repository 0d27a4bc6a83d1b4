"""Numbers of a training step that are still on the device, and how the host reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitswitch.precision import Precision
from bitswitch.training._scales import LayerStep


@dataclass(frozen=True)
class Measured:
    """What one width's forward and backward pass leaves behind.

    Attributes:
        bits: the width that names it.
        precision: what ran.
        used: layers whose weight scale has a gradient.
        maxima: max|∇s^i| of these layers, shape (L,).
        names: of `values`.
        values: float32 vector; over many processes, their means.
    """

    bits: int
    precision: Precision
    used: list[LayerStep]
    maxima: Tensor
    names: tuple[str, ...]
    values: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.values[self.names.index(name)]

    def refusal(self, before: Tensor | None) -> Tensor:
        """Return 1 if a value here is not finite or `before` is 1, else 0, as a float32 scalar on the device."""
        bad = self.values.isfinite().all().logical_not().float()
        return bad if before is None else torch.maximum(bad, before)


def read(measured: Sequence[Measured]) -> list[dict[str, float]]:
    """Return the values of each by name, with one transfer from the device."""
    numbers = iter(torch.cat([item.values for item in measured]).tolist())
    return [dict(zip(item.names, numbers, strict=False)) for item in measured]


def first_not_finite(rows: Sequence[dict[str, float]]) -> int | None:
    """Return the index of the first row with a value that is not finite."""
    return next((i for i, row in enumerate(rows) if not all(map(math.isfinite, row.values()))), None)
