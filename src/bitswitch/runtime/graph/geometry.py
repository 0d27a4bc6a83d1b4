"""The shapes of layers, kept apart from the network, so that a plan runs without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from bitswitch.runtime.conv_reference import Window
from bitswitch.runtime.graph.operations import MaxPool


class ShapeError(Exception):
    """Values have shapes that a plan cannot run; `node` is the operation of the traced network to leave to PyTorch.

    Without a node, the network runs module by module on such inputs.
    """

    def __init__(self, message: str, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


@dataclass(frozen=True)
class ConvGeometry:
    """A 2d convolution; pairs are (vertical, horizontal), padding is (top, bottom, left, right)."""

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, conv: nn.Conv2d) -> ConvGeometry:
        """Read the geometry of a convolution."""
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        kernel, stride, dilation = (tuple[int, int](v) for v in (conv.kernel_size, conv.stride, conv.dilation))
        padding = (top, bottom, left, right)
        return cls(conv.in_channels, conv.out_channels, conv.groups, kernel, stride, padding, dilation)

    def window(self, shape: tuple[int, ...]) -> Window:
        """Return the window over an input of shape (N, C, H, W)."""
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ShapeError(f"a convolution of {self.in_channels} channels on an input of shape {shape}")
        return Window(shape[0], shape[2], shape[3], self.kernel, self.stride, self.padding, self.dilation)


def pool_window(pool: MaxPool, shape: tuple[int, ...]) -> Window:
    """Return the window of a maximum pooling over an input of shape (N, C, H, W)."""
    if len(shape) != 4:
        raise ShapeError(f"a pooling of shape {shape}")
    top, bottom = _ends(shape[2], pool, 0)
    left, right = _ends(shape[3], pool, 1)
    return Window(shape[0], shape[2], shape[3], pool.kernel, pool.stride, (top, bottom, left, right), pool.dilation)


def _ends(size: int, pool: MaxPool, axis: int) -> tuple[int, int]:
    """Return the padding before and behind that gives the number of windows that PyTorch takes."""
    kernel, stride, padding, dilation = (item[axis] for item in (pool.kernel, pool.stride, pool.padding, pool.dilation))
    reach = dilation * (kernel - 1) + 1
    room = size + 2 * padding - reach
    count = room // stride + 1
    if pool.ceil_mode and room % stride and count * stride < size + padding:
        # One more window, which starts inside the image or the padding before it.
        count += 1
    return padding, max(padding, (count - 1) * stride + reach - size - padding)


@dataclass(frozen=True)
class LinearGeometry:
    """A linear layer."""

    in_features: int
    out_features: int

    @classmethod
    def of(cls, linear: nn.Linear) -> LinearGeometry:
        """Read the geometry of a linear layer."""
        return cls(linear.in_features, linear.out_features)

    def rows(self, shape: tuple[int, ...]) -> int:
        """Return the number of rows of an input of shape (…, in_features)."""
        if not shape or shape[-1] != self.in_features:
            raise ShapeError(f"a linear layer of {self.in_features} inputs on an input of shape {shape}")
        rows = 1
        for size in shape[:-1]:
            rows *= size
        return rows


Geometries = Mapping[str, ConvGeometry | LinearGeometry]
