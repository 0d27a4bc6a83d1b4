"""Plain PyTorch references of the integer kernels for linear layers: what the compiled ones equal bit for bit.

Integer sums are exact (float64 holds every integer they reach), and the float32 arithmetic around them has a fixed
order without fused multiply-adds, so that there is one right answer for each output.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bitswitch._planes import planes_needed
from bitswitch.rounding import second_round


def quantize_codes(x: Tensor, scale: float, zero_point: int, top: int) -> Tensor:
    """Return the activation codes of float inputs, Eq. (4): clamp(round(x / s) + zp, 0, top).

    Ties go to the even integer and the quotient is a float32 division, as in training. NaN becomes code 0.

    Args:
        x: float32 or bfloat16 tensor.
        scale: the scale s > 0.
        zero_point: the integer zero point, 0 … top.
        top: the highest code, 2^b − 1.

    Returns:
        uint8 tensor of the shape of `x`.

    >>> quantize_codes(torch.tensor([-1.0, 0.25, 0.75, 9.0]), 0.5, 0, 15)
    tensor([ 0,  0,  2, 15], dtype=torch.uint8)
    """
    steps = x.float() / torch.tensor(scale, dtype=torch.float32, device=x.device)
    return (steps.round() + zero_point).nan_to_num_(nan=0.0).clamp_(0, top).to(torch.uint8)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return 8-bit codes of each row under a symmetric scale of its own, s = max|x| / 127, with zero point 128.

    A row of which s is zero has scale 1. NaN does not count for the maximum and gets the lowest code.

    Args:
        x: float32 or bfloat16 tensor (rows, columns).

    Returns:
        uint8 codes of the shape of `x`, clamp(round(x / s), −127, 127) + 128, and float32 scales (rows,).

    >>> quantize_rows(torch.tensor([[254.0, -4.0], [0.0, 0.0]]))
    (tensor([[255, 126],
            [128, 128]], dtype=torch.uint8), tensor([2., 1.]))
    """
    wide = x.float()
    size = wide.abs()
    size = torch.where(size.isnan(), 0.0, size)
    top = size.amax(dim=1) if x.shape[1] else size.new_zeros(x.shape[0])
    scale = top / torch.tensor(127.0, dtype=torch.float32, device=x.device)
    scale = torch.where(scale > 0, scale, 1.0)
    steps = (wide / scale[:, None]).round().nan_to_num_(nan=-127.0).clamp_(-127, 127)
    return (steps + 128).to(torch.uint8), scale


def weight_codes(planes: Sequence[Tensor], stored_bits: int, bits: int, in_features: int) -> Tensor:
    """Return the codes W̃_l of a weight from its leading planes, Eq. (2).

    Args:
        planes: uint8 tensors (out, row bytes), the first `bitswitch._planes.planes_needed` planes or more.
        stored_bits: the stored width h.
        bits: the width l ≤ h.
        in_features: number of codes of a row; the bits behind them are ignored.

    Returns:
        int8 tensor (out, in_features).
    """
    rows, width = planes[0].shape
    offset = np.zeros((rows, width * 8), np.int16)
    for index, plane in enumerate(planes[: planes_needed(stored_bits, bits)]):
        unpacked = np.unpackbits(plane.numpy(), axis=1, bitorder="little").reshape(rows, width * 8)
        offset |= unpacked.astype(np.int16) << (stored_bits - 1 - index)
    stored = torch.from_numpy(offset[:, :in_features] - (1 << (stored_bits - 1)))
    return second_round(stored, stored_bits, bits).to(torch.int8)


def linear_planes(
    planes: Sequence[Tensor],
    x_codes: Tensor,
    multiplier: Tensor,
    bias: Tensor | None = None,
    *,
    stored_bits: int,
    bits: int,
    zero_point: int = 0,
    group_size: int = 0,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Multiply activation codes by a weight that is given as bit planes.

    y = (Σ_g float32(Σ_{k in g} (x̃_k − zp)·w̃_nk) · m[n, g]) · r + b[n] in float32, groups added in order from 0.

    Args:
        planes: uint8 tensors (out, row bytes) from the top bit down, at least those that the width needs; a row is
            in_features bits, little-endian, and zero bits up to a multiple of 64.
        x_codes: uint8 codes (rows, in_features).
        multiplier: float32 m (out, groups); one group for a scale per tensor or channel.
        bias: float32 (out,), or None.
        stored_bits: the stored width h.
        bits: the width l to compute at.
        zero_point: code that stands for zero, 0 … 255.
        group_size: inputs that share a multiplier, or 0 for all.
        row_scale: float32 r (rows,), or None for 1.

    Returns:
        float32 tensor (rows, out).
    """
    rows, in_features = x_codes.shape
    weight = weight_codes(planes, stored_bits, bits, in_features).double()
    centred = x_codes.double() - zero_point
    y = torch.zeros(rows, weight.shape[0], dtype=torch.float32, device="cpu")
    for group in range(multiplier.shape[1]):
        part = slice(group * group_size, (group + 1) * group_size) if group_size else slice(None)
        y += (centred[:, part] @ weight[:, part].T).float() * multiplier[:, group]
    if row_scale is not None:
        y *= row_scale[:, None]
    if bias is not None:
        y += bias
    return y


def pack_rows(codes: Tensor, stored_bits: int) -> list[Tensor]:
    """Return the planes of a weight with each row padded to a multiple of 64 bits, as the kernels read them.

    Args:
        codes: int8 codes W̃_h (out, in).
        stored_bits: the stored width h.

    Returns:
        One uint8 tensor (out, 8·ceil(in / 64)) a plane, from the top bit down.
    """
    offset = (codes.numpy().astype(np.int16) + (1 << (stored_bits - 1))).astype(np.uint8)
    padded = np.zeros((codes.shape[0], -(-codes.shape[1] // 64) * 64), np.uint8)
    planes = []
    for index in range(stored_bits):
        padded[:, : codes.shape[1]] = (offset >> (stored_bits - 1 - index)) & 1
        packed = np.packbits(padded, axis=1, bitorder="little")
        planes.append(torch.from_numpy(packed.reshape(codes.shape[0], padded.shape[1] // 8)))
    return planes
