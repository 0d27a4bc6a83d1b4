"""Weights unpacked from their planes: panels of tiles for products with many rows and for convolutions, and codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bitswitch import kernels
from bitswitch._planes import planes_needed
from bitswitch.errors import ArgumentError, PrecisionError
from bitswitch.runtime import reference

# A linear layer with more rows than that is multiplied by tiles.
FEW_ROWS = 8
# 255 · 128 · 65536 is the largest sum below 2^31.
MOST_PRODUCTS = 65536


@dataclass(frozen=True, eq=False)
class Tiles:
    """A weight (out, channels, taps) at one width, in the layout of the microkernels.

    Attributes:
        data: int8 (groups, panels, taps, ceil(channels / 4), 16, 4): each group's output channels in panels of 16, its
            inputs by four, zeros where there is none.
        row_sums: int32 (out,), the sum of each output channel's codes.
    """

    data: Tensor
    row_sums: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of both tensors."""
        return self.data.numel() + 4 * self.row_sums.numel()


def tiles_bytes(out: int, channels: int, taps: int = 1, groups: int = 1) -> int:
    """Return `Tiles.num_bytes` of a weight (out, channels, taps)."""
    panels = -(-out // groups // 16)
    return groups * panels * taps * -(-channels // 4) * 64 + 4 * out


def tiles_of_codes(codes: Tensor, groups: int = 1) -> Tiles:
    """Return the tiles of int8 codes (out, channels, taps).

    Raises:
        ArgumentError: groups that do not divide the output channels, or sums that could overflow 32 bits.
    """
    out, channels, taps = codes.shape
    _check_sizes(out, channels, taps, groups)
    rows, panels, blocks = out // groups, -(-out // groups // 16), -(-channels // 4)
    tiles = codes.reshape(groups, rows, channels, taps)
    tiles = F.pad(tiles, (0, 0, 0, blocks * 4 - channels, 0, panels * 16 - rows))
    tiles = tiles.reshape(groups, panels, 16, blocks, 4, taps).permute(0, 1, 5, 3, 2, 4).contiguous()
    return Tiles(tiles, codes.flatten(1).sum(1, dtype=torch.int32))


def pack_tiles(
    planes: Sequence[Tensor], *, stored_bits: int, bits: int, channels: int, taps: int = 1, groups: int = 1
) -> Tiles:
    """Return the tiles of a weight (out, channels, taps) from its planes.

    Args:
        planes: contiguous uint8 tensors (out, 8·ceil(channels·taps / 64)) from the top bit down, at least those that
            the width needs.
        stored_bits: the stored width h, 2 … 8.
        bits: the width l, 2 … h.
        channels: inputs of one group.
        taps: positions of a convolution's window.
        groups: groups of channels.

    Raises:
        ArgumentError: planes of another kind or shape, or sizes that there are no tiles for.
        PrecisionError: the width does not exist, or needs planes that are not given.
    """
    _check_planes(planes, stored_bits, bits, channels * taps)
    out, row_bytes = planes[0].shape
    _check_sizes(out, channels, taps, groups)
    if kernels.native is None:
        codes = reference.weight_codes(planes, stored_bits, bits, channels * taps)
        return tiles_of_codes(codes.view(out, channels, taps), groups)
    shape = (groups, -(-out // groups // 16), taps, -(-channels // 4), 16, 4)
    made = Tiles(torch.empty(shape, dtype=torch.int8, device="cpu"), torch.empty(out, dtype=torch.int32, device="cpu"))
    addresses = [plane.data_ptr() for plane in planes]
    kernels.native.pack_tiles(
        addresses,
        stored_bits,
        bits,
        out,
        groups,
        channels,
        taps,
        row_bytes,
        made.data.data_ptr(),
        made.row_sums.data_ptr(),
    )
    return made


def unpack_codes(planes: Sequence[Tensor], *, stored_bits: int, bits: int, columns: int) -> Tensor:
    """Return the codes W̃_l of a weight from its planes, Eq. (2): int8 (out, columns).

    Args:
        planes: as for `pack_tiles`.
        stored_bits: the stored width h, 2 … 8.
        bits: the width l, 2 … h.
        columns: codes of a row.

    Raises:
        ArgumentError: planes of another kind or shape.
        PrecisionError: the width does not exist, or needs planes that are not given.
    """
    _check_planes(planes, stored_bits, bits, columns)
    if kernels.native is None:
        return reference.weight_codes(planes, stored_bits, bits, columns)
    out, row_bytes = planes[0].shape
    codes = torch.empty(out, columns, dtype=torch.int8, device="cpu")
    addresses = [plane.data_ptr() for plane in planes]
    kernels.native.unpack_codes(addresses, stored_bits, bits, out, columns, row_bytes, codes.data_ptr())
    return codes


def linear_tiled(
    tiles: Tiles,
    x_codes: Tensor,
    multiplier: Tensor,
    bias: Tensor | None = None,
    *,
    zero_point: int = 0,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Multiply activation codes by tiles; see `bitswitch.runtime.reference.linear_planes` for the arithmetic.

    Args:
        tiles: of a weight with one tap and one group.
        x_codes: contiguous uint8 codes (rows, in).
        multiplier: contiguous float32 m (out,) or (out, 1).
        bias: contiguous float32 (out,), or None.
        zero_point: code that stands for zero, 0 … 255.
        row_scale: contiguous float32 (rows,), or None.

    Returns:
        float32 tensor (rows, out).

    Raises:
        ArgumentError: tensors that do not fit each other, or no compiled kernels.
    """
    if kernels.native is None:
        raise ArgumentError("tiles are multiplied by the compiled kernels, which are not there")
    (rows, inner), out = x_codes.shape, tiles.row_sums.numel()
    groups, _panels, taps, blocks = tiles.data.shape[:4]
    if (groups, taps, blocks) != (1, 1, -(-inner // 4)) or multiplier.numel() != out:
        raise ArgumentError(f"tiles {tuple(tiles.data.shape)} and {multiplier.numel()} multipliers for {inner} inputs")
    sizes = {"x_codes": (x_codes, torch.uint8, rows * inner), "multiplier": (multiplier, torch.float32, out)}
    if bias is not None:
        sizes["bias"] = (bias, torch.float32, out)
    if row_scale is not None:
        sizes["row_scale"] = (row_scale, torch.float32, rows)
    for name, (tensor, dtype, count) in sizes.items():
        if tensor.dtype is not dtype or tensor.numel() != count or not tensor.is_contiguous():
            raise ArgumentError(f"{name} must be {count} contiguous {dtype}, not {tuple(tensor.shape)} {tensor.dtype}")
    return run_linear_tiled(tiles, x_codes, multiplier, bias, zero_point=zero_point, row_scale=row_scale)


def run_linear_tiled(
    tiles: Tiles,
    x_codes: Tensor,
    multiplier: Tensor,
    bias: Tensor | None,
    *,
    zero_point: int,
    row_scale: Tensor | None,
) -> Tensor:
    """Do what `linear_tiled` does with arguments that are known to be right."""
    assert kernels.native is not None
    (rows, inner), out_features = x_codes.shape, tiles.row_sums.numel()
    out = torch.empty(rows, out_features, dtype=torch.float32, device="cpu")
    kernels.native.linear_tiled(
        tiles.data.data_ptr(),
        tiles.row_sums.data_ptr(),
        out_features,
        inner,
        multiplier.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        x_codes.data_ptr(),
        rows,
        inner,
        zero_point,
        0 if row_scale is None else row_scale.data_ptr(),
        out.data_ptr(),
    )
    return out


def _check_planes(planes: Sequence[Tensor], stored_bits: int, bits: int, columns: int) -> None:
    if not 2 <= bits <= stored_bits <= 8:
        raise PrecisionError(f"no {bits}-bit weights in {stored_bits}-bit planes")
    needed = planes_needed(stored_bits, bits)
    if len(planes) < needed:
        raise PrecisionError(f"{bits} bits need {needed} planes, and {len(planes)} are given")
    shape = (planes[0].shape[0], 8 * -(-columns // 64))
    for index, plane in enumerate(planes):
        if plane.dtype is not torch.uint8 or tuple(plane.shape) != shape or not plane.is_contiguous():
            raise ArgumentError(
                f"plane {index} must be contiguous uint8 {shape}, not {plane.dtype} {tuple(plane.shape)}"
            )


def _check_sizes(out: int, channels: int, taps: int, groups: int) -> None:
    if groups < 1 or out % groups:
        raise ArgumentError(f"{out} output channels cannot be divided into {groups} groups")
    if channels * taps > MOST_PRODUCTS:
        raise ArgumentError(f"sums of {channels * taps} products do not fit into 32 bits")
