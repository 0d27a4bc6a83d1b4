"""Double Rounding, Eq. (1)–(3) of arXiv:2502.01199, as pure functions of tensors.

The stored integers of a network have `stored_bits` bits; every lower width is a rounded arithmetic shift of them. The
same functions serve training (float-valued codes) and stored models (integer codes), which is what makes the trained
and the stored network the same network.

Some widths may be *mid-rise* instead of mid-tread: their l-bit code c stands for (c + ½) · s_l, so that the levels lie
on both sides of zero alike and none of them is zero. Rounding is then a floor: an arithmetic shift, and the l leading
bits of the stored integer. This variant is ours; the functions take the widths that it applies to as `midrise`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from bitswitch.errors import PrecisionError


def int_range(bits: int) -> tuple[int, int]:
    """Return the range (n, p) of signed `bits`-bit integers: −2^(b−1) and 2^(b−1) − 1.

    >>> int_range(8), int_range(2)
    ((-128, 127), (-2, 1))
    """
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def uint_range(bits: int) -> tuple[int, int]:
    """Return the range (0, 2^b − 1) of activation codes, Eq. (4).

    >>> uint_range(4)
    (0, 15)
    """
    return 0, (1 << bits) - 1


def first_round(weight: Tensor, scale: Tensor, bits: int, midrise: Collection[int] = ()) -> Tensor:
    """Round float weights to the stored integers, Eq. (1): clip(round(W / s_h), n, p).

    Ties of the float32 quotient go to the even integer. The quotient is a division, never a product with a reciprocal,
    so that codes are reproducible. Where h is mid-rise, it is clip(floor(W / s_h), n, p).

    Args:
        weight: float tensor; it is computed with in float32.
        scale: float32 scale s_h > 0, broadcastable to `weight`.
        bits: the stored width h.
        midrise: widths whose levels are (c + ½) · s.

    Returns:
        Integer-valued float32 tensor of the shape of `weight`.

    >>> first_round(torch.tensor([0.26, -0.74, 9.0]), torch.tensor(0.5), 4)
    tensor([ 1., -1.,  7.])
    """
    n, p = int_range(bits)
    quotient = weight.float() / scale
    return (quotient.floor_() if bits in midrise else quotient.round_()).clamp_(n, p)


def second_round(codes: Tensor, stored_bits: int, bits: int, midrise: Collection[int] = ()) -> Tensor:
    """Round stored integers to a lower width, Eq. (2): W̃_l = min((W̃_h + 2^(Δ−1)) >> Δ, p_l), with Δ = h − l.

    Ties go up, so the result is an add and an arithmetic shift and depends on the l + 1 leading bits of the stored
    integer only. The paper leaves the ties open; this rule is ours. Where l is mid-rise, it is W̃_h >> Δ.

    Args:
        codes: integer tensor of any width, or integer-valued float tensor, with values of `stored_bits` bits.
        stored_bits: the stored width h.
        bits: the target width l ≤ h.
        midrise: widths whose levels are (c + ½) · s.

    Returns:
        Tensor of the same dtype and shape. For l = h the codes themselves are returned, not a copy.

    Raises:
        PrecisionError: `bits` exceeds `stored_bits`.

    >>> second_round(torch.tensor([127, 96, 31, -33, -128], dtype=torch.int8), 8, 2)
    tensor([ 1,  1,  0, -1, -2], dtype=torch.int8)
    >>> second_round(torch.tensor([127, 33, -1, -128], dtype=torch.int8), 8, 2, midrise=(2,))
    tensor([ 1,  0, -1, -2], dtype=torch.int8)
    """
    shift = stored_bits - bits
    if shift < 0:
        raise PrecisionError(f"cannot round {stored_bits}-bit codes up to {bits} bits")
    if shift == 0:
        return codes
    if bits in midrise:
        return torch.mul(codes, 2.0**-shift).floor_() if codes.is_floating_point() else codes >> shift
    top = int_range(bits)[1]
    if codes.is_floating_point():
        # Exact in float32: the codes are small integers and the factor is a power of two.
        return torch.add(0.5, codes, alpha=2.0**-shift).floor_().clamp_(max=top)
    # 127 + 2^(Δ−1) does not fit in int8.
    wide = codes.to(torch.int16)
    return ((wide + (1 << (shift - 1))) >> shift).clamp_(max=top).to(codes.dtype)


def double_round(weight: Tensor, scale: Tensor, stored_bits: int, bits: int, midrise: Collection[int] = ()) -> Tensor:
    """Round float weights to `bits`-bit integers through the stored integers, Eq. (1) and (2).

    Args:
        weight: float tensor.
        scale: float32 scale s_h > 0 of the stored width, broadcastable to `weight`.
        stored_bits: the stored width h.
        bits: the target width l ≤ h.
        midrise: widths whose levels are (c + ½) · s.

    Returns:
        Integer-valued float32 tensor of the shape of `weight`.

    Raises:
        PrecisionError: `bits` exceeds `stored_bits`.
    """
    return second_round(first_round(weight, scale, stored_bits, midrise), stored_bits, bits, midrise)


def dequantize(codes: Tensor, scale: Tensor, stored_bits: int, bits: int, midrise: Collection[int] = ()) -> Tensor:
    """Return the float weights that integer codes stand for, Eq. (3): Ŵ_l = W̃_l · (s_h · 2^Δ).

    Where l is mid-rise, it is (W̃_l + ½) · (s_h · 2^Δ).

    Args:
        codes: integer or integer-valued tensor of `bits`-bit codes.
        scale: float32 scale s_h of the stored width, broadcastable to `codes`.
        stored_bits: the stored width h.
        bits: the width l of `codes`.
        midrise: widths whose levels are (c + ½) · s.

    Returns:
        float32 tensor of the shape of `codes`.

    >>> dequantize(torch.tensor([1, -2], dtype=torch.int8), torch.tensor(0.25), 8, 2)
    tensor([ 16., -32.])
    >>> dequantize(torch.tensor([1, -2], dtype=torch.int8), torch.tensor(0.25), 8, 2, midrise=(2,))
    tensor([ 24., -24.])
    """
    levels = codes.float() + 0.5 if bits in midrise else codes.float()
    return levels * (scale * 2.0 ** (stored_bits - bits))
