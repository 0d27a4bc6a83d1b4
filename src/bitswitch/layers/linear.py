"""Switchable linear layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch.layers.base import SwitchableLayer


class SwitchableLinear(SwitchableLayer, nn.Linear):
    """Linear layer on inputs of any rank, (…, in_features) → (…, out_features)."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer at the active width."""
        x, weight = self._operands(input)
        return F.linear(x, weight, self.bias)
