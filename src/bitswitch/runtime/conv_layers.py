"""Convolutions of every kind on the stored integers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bitswitch import kernels
from bitswitch.errors import ArgumentError
from bitswitch.runtime.layers import IntegerLayer, Operands, encode, multiply_codes

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class IntegerConv(IntegerLayer):
    """Convolutions in any number of dimensions, plain or grouped."""

    padding_mode: str
    in_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    _reversed_padding_repeated_twice: list[int]

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer at the width of the call: (B, C, …) or (C, …), out in the dtype of the input."""
        operands = self.operands()
        spatial = len(self.kernel_size)
        batched = input if input.dim() == spatial + 2 else input.unsqueeze(0)
        if batched.dim() != spatial + 2 or batched.shape[1] != self.in_channels:
            # Nothing behind this looks at the shape again.
            raise RuntimeError(f"{self.layer_name!r} takes {self.in_channels} channels, not {tuple(input.shape)}")
        codes, row_scale = _encode_images(batched, operands)
        if kernels.native is not None and self.groups == 1:
            out = self._by_patches(codes, row_scale, operands)
        else:
            out = self._by_products(codes, row_scale, operands)
        return _like(out, input, batched)

    def _by_patches(self, codes: Tensor, row_scale: Tensor | None, operands: Operands) -> Tensor:
        """Bring the inputs of each output pixel together in a row, and multiply rows."""
        padded = self._padded(codes, operands.zero_point)
        rows, size = patches(padded, self.kernel_size, self.stride, self.dilation)
        if row_scale is not None:
            row_scale = row_scale.repeat_interleave(math.prod(size))
        out = multiply_codes(rows, row_scale, operands, self.stored)
        return out.view(codes.shape[0], *size, self.stored.num_rows).movedim(-1, 1)

    def _by_products(self, codes: Tensor, row_scale: Tensor | None, operands: Operands) -> Tensor:
        """Convolve in float64, in which all sums of products of codes are exact."""
        centred = self._padded(codes.double() - operands.zero_point, 0)
        conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(self.kernel_size)]

        def sums(weight: Tensor) -> Tensor:
            return conv(centred, weight, None, self.stride, 0, self.dilation, self.groups)

        return affine(self, sums, row_scale, operands)

    def _padded(self, codes: Tensor, value: int) -> Tensor:
        pads = self._reversed_padding_repeated_twice
        if not any(pads):
            return codes
        if self.padding_mode == "zeros":
            return F.pad(codes, pads, value=value)
        # Not every kind of padding is there for integers.
        return F.pad(codes.double(), pads, mode=self.padding_mode).to(codes.dtype)


class IntegerConvTranspose(IntegerLayer):
    """Transposed convolutions in any number of dimensions, plain or grouped."""

    @torch.no_grad()
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the layer at the width of the call; arguments are those of `torch.nn.ConvTranspose2d`."""
        layer: Any = self
        operands = self.operands()
        spatial = len(layer.kernel_size)
        extra = layer._output_padding(
            input, output_size, layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation
        )
        batched = input if input.dim() == spatial + 2 else input.unsqueeze(0)
        codes, row_scale = _encode_images(batched, operands)
        centred = codes.double() - operands.zero_point
        conv = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial]

        def sums(weight: Tensor) -> Tensor:
            return conv(centred, weight, None, layer.stride, layer.padding, extra, layer.groups, layer.dilation)

        return _like(affine(self, sums, row_scale, operands), input, batched)


def _encode_images(x: Tensor, operands: Operands) -> tuple[Tensor, Tensor | None]:
    """Return codes (B, C, …), and a scale for each image if they have their own."""
    if operands.scale is not None:
        return encode(x.contiguous(), operands)
    codes, scales = encode(x.flatten(1).contiguous(), operands)
    return codes.view(x.shape), scales


def _like(out: Tensor, x: Tensor, batched: Tensor) -> Tensor:
    """Return the output with the number of dimensions, the type and the memory format of the input `x`."""
    out = out if batched is x else out.squeeze(0)
    kind = _CHANNELS_LAST.get(x.dim(), torch.contiguous_format)
    if x.is_contiguous() or not x.is_contiguous(memory_format=kind):
        kind = torch.contiguous_format
    return out.to(x.dtype).contiguous(memory_format=kind)


def affine(layer: IntegerLayer, sums: Any, row_scale: Tensor | None, operands: Operands) -> Tensor:
    """Return y = (Σ_g float(acc_g)·m[n, g])·r + b[n] of a convolution, float32 (B, N, …).

    Args:
        layer: gives codes and their layout.
        sums: exact float64 sums for float64 weights in the layer's own layout.
        row_scale: r of each image, or None for 1.
        operands: m and b.
    """
    factors = operands.ops.get("factors")
    if factors is None:
        factors = operands.ops["factors"] = layer.stored.kept_factors(operands.bits)
    factors = factors.double()
    out: Tensor | None = None
    for group in range(operands.multiplier.shape[1]):
        weight = factors
        if operands.group_size:
            weight = torch.zeros_like(factors)
            part = slice(group * operands.group_size, (group + 1) * operands.group_size)
            weight.flatten(1)[:, part] = factors.flatten(1)[:, part]
        acc = sums(layer.from_out_first(weight)).float()
        shape = (1, -1, *[1] * (acc.dim() - 2))
        term = acc * operands.multiplier[:, group].view(shape)
        out = term if out is None else out + term
    assert out is not None
    if row_scale is not None:
        out = out * row_scale.view(-1, *[1] * (out.dim() - 1))
    return out if operands.bias is None else out + operands.bias.view(1, -1, *[1] * (out.dim() - 2))


def patches(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return what each output pixel of a convolution sees, and the size of the output.

    Args:
        x: padded input (B, C, …).
        kernel: sizes of the kernel.
        stride: steps between output pixels.
        dilation: steps between taps.

    Returns:
        (B · pixels, C · taps), contiguous, in the order of the flattened weight; and the spatial size.

    Raises:
        ArgumentError: the kernel does not fit into the input.
    """
    x = x.contiguous()
    spatial = x.shape[2:]
    size = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(spatial, kernel, stride, dilation, strict=True))
    if min(size) < 1:
        raise ArgumentError(f"a window of {kernel} does not fit into a padded image of {tuple(spatial)}")
    strides = x.stride()
    shape = (x.shape[0], *size, x.shape[1], *kernel)
    steps = (
        strides[0],
        *(a * s for a, s in zip(strides[2:], stride, strict=True)),
        strides[1],
        *(a * d for a, d in zip(strides[2:], dilation, strict=True)),
    )
    rows = x.as_strided(shape, steps).reshape(x.shape[0] * math.prod(size), x.shape[1] * math.prod(kernel))
    # Dilated taps can make rows that are a view with steps between their elements.
    return rows.contiguous(), size
