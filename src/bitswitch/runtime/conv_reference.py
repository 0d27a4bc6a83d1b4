"""Integer convolutions in plain PyTorch: what the compiled kernels equal bit for bit.

Codes are uint8 (batch, height, width, channel stride) with the channels rounded up to a multiple of four; float tensors
are (batch, height, width, channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitswitch.errors import ArgumentError


def channel_stride(channels: int) -> int:
    """Return the codes of one pixel: channels rounded up to a multiple of four."""
    return -(-channels // 4) * 4


@dataclass(frozen=True)
class Window:
    """A window that slides over an image; pairs are (vertical, horizontal), padding is (top, bottom, left, right)."""

    batch: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output.

        Raises:
            ArgumentError: the window does not fit into the padded image.
        """
        top, bottom, left, right = self.padding
        sizes = (self.height + top + bottom, self.width + left + right)
        pairs = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        height, width = ((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in pairs)
        if height < 1 or width < 1:
            raise ArgumentError(f"a window of {self.kernel} does not fit into a padded image of {sizes}")
        return height, width


@dataclass(frozen=True)
class Quantizer:
    """A quantized copy of an output: clamp(rne(y · float32(1 / scale)) + zero_point, 0, top)."""

    scale: float
    zero_point: int
    top: int

    @property
    def inverse(self) -> float:
        """1 / scale, rounded to float32."""
        return float(np.float32(1.0) / np.float32(self.scale))

    def codes(self, y: Tensor) -> Tensor:
        """Return uint8 codes of float32 values, by a product as in the kernels' epilogues."""
        low, high = float(-self.zero_point), float(self.top - self.zero_point)
        return (torch.round((y * self.inverse).clamp(low, high)) + self.zero_point).to(torch.uint8)


@dataclass(frozen=True)
class Epilogue:
    """What follows a sum: bounds of the result, and the copies of it that are wanted."""

    clamp: tuple[float, float] = (-math.inf, math.inf)
    quantized: tuple[Quantizer, ...] = ()
    write_float: bool = True

    def outputs(self, y: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Return the float result, or None if it is not wanted, and the quantized copies."""
        y = y.clamp(*self.clamp)
        copies = [F.pad(q.codes(y), (0, channel_stride(y.shape[-1]) - y.shape[-1])) for q in self.quantized]
        return (y if self.write_float else None), copies


def conv2d(
    x: Tensor,
    weight: Tensor,
    window: Window,
    epilogue: Epilogue,
    *,
    multiplier: Tensor,
    bias: Tensor | None = None,
    zero_point: int = 0,
    groups: int = 1,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, list[Tensor]]:
    """Convolve codes: y = clamp(float(Σ (x̃ − zp)·w̃)·m + b (+ residual)), with zero padding.

    Args:
        x: uint8 codes (batch, height, width, channel stride).
        weight: int8 codes (out, in / groups, kernel height, kernel width).
        window: geometry.
        epilogue: bounds and copies.
        multiplier: float32 (out,).
        bias: float32 (out,), or None.
        zero_point: code that stands for zero.
        groups: groups of channels.
        residual: float32 of the output's shape, or None.

    Returns:
        The float output (batch, height, width, out), or None, and the quantized copies.
    """
    top, bottom, left, right = window.padding
    # Sums of products of integers are exact in float64.
    image = (x[..., : weight.shape[1] * groups].double() - zero_point).permute(0, 3, 1, 2)
    image = F.pad(image, (left, right, top, bottom))
    sums = F.conv2d(image, weight.double(), None, window.stride, 0, window.dilation, groups)
    y = sums.permute(0, 2, 3, 1).float() * multiplier + (0.0 if bias is None else bias)
    return epilogue.outputs(y if residual is None else y + residual)


def max_pool2d(x: Tensor, window: Window, epilogue: Epilogue) -> tuple[Tensor | None, list[Tensor]]:
    """Return the maximum over windows of a float tensor (batch, height, width, channels)."""
    top, bottom, left, right = window.padding
    image = F.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom), value=-math.inf)
    y = F.max_pool2d(image, window.kernel, window.stride, 0, window.dilation)
    return epilogue.outputs(y.permute(0, 2, 3, 1).contiguous())


def mean_pool(x: Tensor, epilogue: Epilogue) -> tuple[Tensor | None, list[Tensor]]:
    """Return the mean of (batch, pixels, channels) over the pixels, added up in their order."""
    total = torch.zeros(x.shape[0], x.shape[2], dtype=torch.float32, device="cpu")
    for pixel in range(x.shape[1]):
        total = total + x[:, pixel]
    return epilogue.outputs(total / x.shape[1])


def add(a: Tensor, b: Tensor | None, epilogue: Epilogue) -> tuple[Tensor | None, list[Tensor]]:
    """Return clamp(a + b), or clamp(a), and its copies."""
    return epilogue.outputs(a if b is None else a + b)


def quantize(x: Tensor, quantizer: Quantizer, channels_last: bool) -> Tensor:
    """Return codes (batch, pixels, channel stride) of floats by true division.

    Args:
        x: float32 (batch, channels, pixels), or (batch, pixels, channels) if `channels_last`.
        quantizer: scale, zero point and highest code.
        channels_last: the layout of `x`.
    """
    x = x if channels_last else x.transpose(1, 2)
    low, high = float(-quantizer.zero_point), float(quantizer.top - quantizer.zero_point)
    scale = torch.tensor(quantizer.scale, dtype=torch.float32, device="cpu")
    codes = (torch.round((x / scale).clamp(low, high)) + quantizer.zero_point).to(torch.uint8)
    return F.pad(codes, (0, channel_stride(x.shape[-1]) - x.shape[-1]))
