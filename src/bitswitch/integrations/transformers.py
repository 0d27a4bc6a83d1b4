"""Layers of Hugging Face's transformers; imported only when a model has one."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from bitswitch.layers.base import SwitchableLayer


class SwitchableConv1D(SwitchableLayer, Conv1D):
    """GPT-2's linear layer, (…, nx) → (…, nf); its weight is (nx, nf), so out-first is the transpose."""

    nf: int
    nx: int
    bias: torch.nn.Parameter

    def out_first(self, weight: Tensor) -> Tensor:  # noqa: D102
        return weight.t()

    def from_out_first(self, weight: Tensor) -> Tensor:  # noqa: D102
        # In one memory order, wherever the weight comes from: matrix products add up in an order that depends on it.
        return weight.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer at the active width."""
        x, weight = self._operands(x)
        return torch.addmm(self.bias, x.reshape(-1, self.nx), weight).view(*x.shape[:-1], self.nf)

    def __repr__(self) -> str:
        return f"SwitchableConv1D(nf={self.nf}, nx={self.nx}, bits={self.bits} of {self.widths})"
