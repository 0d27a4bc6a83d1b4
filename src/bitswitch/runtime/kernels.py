"""The integer kernels for linear layers, on the compiled library where there is one and on the references elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitswitch import kernels
from bitswitch._planes import planes_needed
from bitswitch.errors import ArgumentError, PrecisionError
from bitswitch.runtime import reference

# Types of inputs that the kernels read, with the numbers that they know them by.
FLOATS = {torch.float32: 0, torch.bfloat16: 1}


def _check(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], shape: tuple[int | None, ...] | None) -> None:
    """Refuse a tensor that a kernel could not read at its address; None in `shape` stands for any size."""
    if tensor.dtype not in dtypes:
        raise ArgumentError(f"{name} must be {' or '.join(str(d) for d in dtypes)}, not {tensor.dtype}")
    if tensor.device.type != "cpu":
        raise ArgumentError(f"{name} must be on the CPU, not on {tensor.device}")
    if shape is not None and (
        tensor.dim() != len(shape) or any(s is not None and s != t for s, t in zip(shape, tensor.shape, strict=True))
    ):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ArgumentError(f"{name} must have shape ({wanted}), not {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ArgumentError(f"{name} must be contiguous")


def quantize_codes(x: Tensor, scale: float, zero_point: int, top: int) -> Tensor:
    """Return the activation codes of float inputs; see `bitswitch.runtime.reference.quantize_codes`.

    Args:
        x: contiguous float32 or bfloat16 tensor on the CPU.
        scale: the scale s > 0.
        zero_point: the integer zero point, 0 … top.
        top: the highest code, 1 … 255.

    Returns:
        uint8 tensor of the shape of `x`.

    Raises:
        ArgumentError: a tensor of another kind, or numbers out of range.
    """
    _check("x", x, tuple(FLOATS), None)
    if not (0 <= zero_point <= top <= 255 and scale > 0):
        raise ArgumentError(f"no codes 0 … {top} with zero point {zero_point} and scale {scale}")
    return run_quantize_codes(x, scale, zero_point, top)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return 8-bit codes and scales of each row; see `bitswitch.runtime.reference.quantize_rows`.

    Args:
        x: contiguous float32 or bfloat16 tensor (rows, columns) on the CPU.

    Returns:
        uint8 codes of the shape of `x` and float32 scales (rows,).

    Raises:
        ArgumentError: a tensor of another kind.
    """
    _check("x", x, tuple(FLOATS), (None, None))
    if kernels.native is None:
        return reference.quantize_rows(x)
    out = torch.empty(x.shape, dtype=torch.uint8, device="cpu")
    scales = torch.empty(x.shape[0], dtype=torch.float32, device="cpu")
    kernels.native.quantize_rows(
        x.data_ptr(), FLOATS[x.dtype], x.shape[0], x.shape[1], out.data_ptr(), scales.data_ptr()
    )
    return out, scales


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
    """Multiply activation codes by bit planes; see `bitswitch.runtime.reference.linear_planes` for the arithmetic.

    Args:
        planes: contiguous uint8 tensors (out, 8·ceil(in / 64)) from the top bit down, at least those that the width
            needs; bits beyond a row's codes are zero.
        x_codes: contiguous uint8 codes (rows, in).
        multiplier: contiguous float32 m (out, groups).
        bias: contiguous float32 (out,), or None.
        stored_bits: the stored width h, 2 … 8.
        bits: the width l to compute at, 2 … h.
        zero_point: code that stands for zero, 0 … 255.
        group_size: inputs that share a multiplier, or 0 for all.
        row_scale: contiguous float32 (rows,), or None.

    Returns:
        float32 tensor (rows, out).

    Raises:
        ArgumentError: a tensor of another kind or shape, or numbers out of range.
        PrecisionError: the width does not exist, or needs planes that are not given.
    """
    if not 2 <= bits <= stored_bits <= 8:
        raise PrecisionError(f"no {bits}-bit weights in {stored_bits}-bit planes")
    if len(planes) < planes_needed(stored_bits, bits):
        raise PrecisionError(f"{bits} bits need {planes_needed(stored_bits, bits)} planes, and {len(planes)} are given")
    _check("x_codes", x_codes, (torch.uint8,), (None, None))
    (rows, in_features), out_features = x_codes.shape, planes[0].shape[0]
    if not 0 <= zero_point <= 255 or group_size < 0:
        raise ArgumentError(f"no codes with zero point {zero_point}, or no groups of {group_size}")
    groups = -(-in_features // group_size) if group_size else 1
    _check("multiplier", multiplier, (torch.float32,), (out_features, groups))
    for index, plane in enumerate(planes):
        _check(f"plane {index}", plane, (torch.uint8,), (out_features, 8 * -(-in_features // 64)))
    if bias is not None:
        _check("bias", bias, (torch.float32,), (out_features,))
    if row_scale is not None:
        _check("row_scale", row_scale, (torch.float32,), (rows,))
    return run_linear_planes(
        planes,
        [plane.data_ptr() for plane in planes],
        x_codes,
        multiplier,
        bias,
        stored_bits=stored_bits,
        bits=bits,
        zero_point=zero_point,
        group_size=group_size,
        row_scale=row_scale,
    )


def run_quantize_codes(x: Tensor, scale: float, zero_point: int, top: int) -> Tensor:
    """Do what `quantize_codes` does with arguments that are known to be right."""
    if kernels.native is None:
        return reference.quantize_codes(x, scale, zero_point, top)
    out = torch.empty(x.shape, dtype=torch.uint8, device="cpu")
    kernels.native.quantize_codes(x.data_ptr(), FLOATS[x.dtype], x.numel(), scale, zero_point, top, out.data_ptr())
    return out


def run_linear_planes(
    planes: Sequence[Tensor],
    addresses: Sequence[int],
    x_codes: Tensor,
    multiplier: Tensor,
    bias: Tensor | None,
    *,
    stored_bits: int,
    bits: int,
    zero_point: int,
    group_size: int,
    row_scale: Tensor | None,
) -> Tensor:
    """Do what `linear_planes` does with arguments that are known to be right; `addresses` are those of the planes."""
    if kernels.native is None:
        return reference.linear_planes(
            planes,
            x_codes,
            multiplier,
            bias,
            stored_bits=stored_bits,
            bits=bits,
            zero_point=zero_point,
            group_size=group_size,
            row_scale=row_scale,
        )
    (rows, in_features), (out_features, row_bytes) = x_codes.shape, planes[0].shape
    out = torch.empty(rows, out_features, dtype=torch.float32, device="cpu")
    kernels.native.linear_planes(
        addresses,
        stored_bits,
        bits,
        out_features,
        in_features,
        row_bytes,
        group_size,
        multiplier.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        x_codes.data_ptr(),
        rows,
        in_features,
        zero_point,
        0 if row_scale is None else row_scale.data_ptr(),
        out.data_ptr(),
    )
    return out
