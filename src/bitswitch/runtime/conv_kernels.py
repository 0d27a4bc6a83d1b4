"""Convolutions bound to the compiled kernels: made once per layer, width and input shape, then run on addresses.

`run(x, residual, out, q0, q1, q2, q3)` of an op takes addresses (0 for what is absent) of tensors laid out as in
`conv_reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bitswitch import kernels
from bitswitch.errors import ArgumentError
from bitswitch.runtime.conv_reference import Epilogue, Quantizer, Window, channel_stride
from bitswitch.runtime.tiles import pack_tiles, tiles_of_codes, unpack_codes

_MOST_COPIES = 4


def _native() -> ModuleType:
    if kernels.native is None:
        raise ArgumentError("there are no compiled kernels; use bitswitch.runtime.conv_reference")
    return kernels.native


@dataclass(frozen=True)
class PackedConv:
    """Weights in the kernels' layout.

    Attributes:
        data: int8 tiles of each group (panels, taps, ceil(Cg / 4), 16, 4), or the depthwise layout.
        row_sums: int32 (out,), the sum of each output channel's codes.
        shape: of the codes (out, in / groups, kernel height, kernel width).
        groups: groups of channels.
        depthwise: whether `data` is in the depthwise layout.
    """

    data: Tensor
    row_sums: Tensor
    shape: tuple[int, int, int, int]
    groups: int
    depthwise: bool


def pack_conv(codes: Tensor, groups: int = 1) -> PackedConv:
    """Bring int8 codes (out, in / groups, kernel height, kernel width) into the kernels' layout.

    Raises:
        ArgumentError: codes of another kind, or groups that do not divide the output channels.
    """
    if codes.dtype is not torch.int8 or codes.dim() != 4:
        raise ArgumentError(f"codes must be int8 with four dimensions, not {codes.dtype} {tuple(codes.shape)}")
    out_channels, group_in, height, width = codes.shape
    if groups < 1 or out_channels % groups:
        raise ArgumentError(f"{out_channels} output channels cannot be divided into {groups} groups")
    if group_in == 1 and groups == out_channels:
        return _pack_depthwise(codes)
    tiles = tiles_of_codes(codes.flatten(2), groups)
    return PackedConv(tiles.data, tiles.row_sums, (out_channels, group_in, height, width), groups, False)


def pack_conv_planes(
    planes: Sequence[Tensor], shape: tuple[int, int, int, int], groups: int = 1, *, stored_bits: int, bits: int
) -> PackedConv:
    """Bring a weight from its planes into the kernels' layout; see `bitswitch.runtime.tiles.pack_tiles`.

    Args:
        planes: uint8 tensors (out, row bytes).
        shape: of the weight (out, in / groups, kernel height, kernel width).
        groups: groups of channels.
        stored_bits: the stored width h.
        bits: the width l.
    """
    out_channels, group_in, height, width = shape
    if group_in == 1 and groups == out_channels:
        codes = unpack_codes(planes, stored_bits=stored_bits, bits=bits, columns=height * width)
        return _pack_depthwise(codes.view(shape))
    tiles = pack_tiles(
        planes, stored_bits=stored_bits, bits=bits, channels=group_in, taps=height * width, groups=groups
    )
    return PackedConv(tiles.data, tiles.row_sums, shape, groups, False)


def _pack_depthwise(codes: Tensor) -> PackedConv:
    channels, _, height, width = codes.shape
    native, codes = _native(), codes.contiguous()
    data = torch.empty(native.depthwise_bytes(channels, height, width), dtype=torch.int8, device="cpu")
    row_sums = torch.empty(channels, dtype=torch.int32, device="cpu")
    native.pack_depthwise(codes.data_ptr(), channels, height, width, data.data_ptr(), row_sums.data_ptr())
    return PackedConv(data, row_sums, (channels, 1, height, width), channels, True)


def _window(window: Window, stride: int) -> list[int]:
    out_height, out_width = window.out_size
    size = (window.batch, window.height, window.width, out_height, out_width)
    return [*size, *window.kernel, *window.stride, window.padding[0], window.padding[2], *window.dilation, stride]


def _copies(quantizers: tuple[Quantizer, ...], channels: int) -> list[tuple[float, int, int, int]]:
    if len(quantizers) > _MOST_COPIES:
        raise ArgumentError(f"a kernel writes at most {_MOST_COPIES} quantized copies, not {len(quantizers)}")
    for q in quantizers:
        _check_quantizer(q)
    return [(q.inverse, q.zero_point, q.top, channel_stride(channels)) for q in quantizers]


def _check_quantizer(q: Quantizer) -> None:
    if not (0 <= q.zero_point <= q.top <= 255 and q.scale > 0):
        raise ArgumentError(f"no codes 0 … {q.top} with zero point {q.zero_point} and scale {q.scale}")


def _affine(name: str, values: Tensor | None, channels: int) -> int:
    if values is None:
        return 0
    if values.dtype is not torch.float32 or tuple(values.shape) != (channels,) or not values.is_contiguous():
        raise ArgumentError(
            f"{name} must be contiguous float32 ({channels},), not {values.dtype} {tuple(values.shape)}"
        )
    return values.data_ptr()


def conv_op(
    packed: PackedConv,
    window: Window,
    epilogue: Epilogue,
    *,
    multiplier: Tensor,
    bias: Tensor | None = None,
    zero_point: int = 0,
    residual: bool = False,
) -> Any:
    """Bind a convolution; see `bitswitch.runtime.conv_reference.conv2d` for the arithmetic.

    The op copies multiplier, bias and row sums, and keeps `packed`, whose weights it reads.

    Raises:
        ArgumentError: tensors or numbers that the kernel cannot take.
    """
    if window.kernel != packed.shape[2:] or not 0 <= zero_point <= 255:
        raise ArgumentError(f"a window of {window.kernel} and zero point {zero_point} for weights {packed.shape}")
    channels, out_channels = packed.shape[1] * packed.groups, packed.shape[0]
    addresses = (packed.data.data_ptr(), packed.row_sums.data_ptr(), zero_point)
    affine = (_affine("multiplier", multiplier, out_channels), _affine("bias", bias, out_channels))
    end = (*epilogue.clamp, residual, epilogue.write_float, _copies(epilogue.quantized, out_channels))
    args = _window(window, channel_stride(channels))
    if packed.depthwise:
        op = _native().DepthwiseOp(args, channels, *addresses, *affine, *end)
    else:
        op = _native().ConvOp(args, channels, out_channels, packed.groups, *addresses, *affine, *end)
    op.packed = packed  # the op knows only the address of the weights
    return op


def max_pool_op(window: Window, channels: int, epilogue: Epilogue) -> Any:
    """Bind a maximum pooling of float32 (batch, height, width, channels)."""
    end = (*epilogue.clamp, epilogue.write_float, _copies(epilogue.quantized, channels))
    return _native().MaxPoolOp(_window(window, channels), channels, *end)


def mean_pool_op(batch: int, pixels: int, channels: int, epilogue: Epilogue) -> Any:
    """Bind a mean of float32 (batch, pixels, channels) over the pixels."""
    end = (*epilogue.clamp, epilogue.write_float, _copies(epilogue.quantized, channels))
    return _native().MeanPoolOp(batch, pixels, channels, *end)


def add_op(pixels: int, channels: int, epilogue: Epilogue) -> Any:
    """Bind clamp(a + b) of float32 (pixels, channels); b is the `residual` of a run, 0 for none."""
    end = (*epilogue.clamp, epilogue.write_float, _copies(epilogue.quantized, channels))
    return _native().AddOp(pixels, channels, *end)


def quantize_op(batch: int, channels: int, pixels: int, quantizer: Quantizer, channels_last: bool) -> Any:
    """Bind the quantization of a float tensor by true division: `run(x, out)`."""
    _check_quantizer(quantizer)
    q, stride = quantizer, channel_stride(channels)
    return _native().QuantizeOp(batch, channels, pixels, stride, channels_last, q.scale, q.zero_point, q.top)
