"""Switchable convolutions: 1d, 2d, 3d, grouped, depthwise and transposed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch.layers.base import SwitchableLayer


class SwitchableConv1d(SwitchableLayer, nn.Conv1d):
    """1d convolution, (N, C_in, L) → (N, C_out, L_out)."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer at the active width."""
        x, weight = self._operands(input)
        return self._conv_forward(x, weight, self.bias)


class SwitchableConv2d(SwitchableLayer, nn.Conv2d):
    """2d convolution, (N, C_in, H, W) → (N, C_out, H_out, W_out)."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer at the active width."""
        x, weight = self._operands(input)
        return self._conv_forward(x, weight, self.bias)


class SwitchableConv3d(SwitchableLayer, nn.Conv3d):
    """3d convolution, (N, C_in, D, H, W) → (N, C_out, D_out, H_out, W_out)."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer at the active width."""
        x, weight = self._operands(input)
        return self._conv_forward(x, weight, self.bias)


class TransposedConv(SwitchableLayer):
    """Weights are (C_in, C_out / groups, …); out-first, row g · C_out/groups + o is output channel o of group g."""

    groups: int

    def out_first(self, weight: Tensor) -> Tensor:  # noqa: D102
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def from_out_first(self, weight: Tensor) -> Tensor:  # noqa: D102
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def _transposed(self, function: Any, num_spatial: int, x: Tensor, output_size: list[int] | None) -> Tensor:
        layer: Any = self
        padding = layer._output_padding(
            x, output_size, layer.stride, layer.padding, layer.kernel_size, num_spatial, layer.dilation
        )
        x, weight = self._operands(x)
        return function(x, weight, layer.bias, layer.stride, layer.padding, padding, layer.groups, layer.dilation)


class SwitchableConvTranspose1d(TransposedConv, nn.ConvTranspose1d):
    """Transposed 1d convolution, (N, C_in, L) → (N, C_out, L_out)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the layer at the active width."""
        return self._transposed(F.conv_transpose1d, 1, input, output_size)


class SwitchableConvTranspose2d(TransposedConv, nn.ConvTranspose2d):
    """Transposed 2d convolution, (N, C_in, H, W) → (N, C_out, H_out, W_out)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the layer at the active width."""
        return self._transposed(F.conv_transpose2d, 2, input, output_size)


class SwitchableConvTranspose3d(TransposedConv, nn.ConvTranspose3d):
    """Transposed 3d convolution, (N, C_in, D, H, W) → (N, C_out, D_out, H_out, W_out)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the layer at the active width."""
        return self._transposed(F.conv_transpose3d, 3, input, output_size)
