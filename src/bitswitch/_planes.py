"""Bit planes: stored integers split by bit, so that a lower width reads fewer bytes.

A code of h bits is stored as u = W̃_h + 2^(h−1) ("offset binary"). Plane 0 holds the top bit of every u, plane h−1 the
lowest. The l-bit codes of Eq. (2) depend on the l + 1 leading bits alone, so planes 0 … l are all that they need:
W̃_l = min((u >> Δ) + bit_{Δ−1}(u), 2^l − 1) − 2^(l−1). Those of a mid-rise width are (u >> Δ) − 2^(l−1), for which the
planes 0 … l − 1 are enough.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

# Elements unpacked at a time: temporary memory stays small whatever the size of a layer. A multiple of 8.
_CHUNK = 1 << 20


def planes_needed(stored_bits: int, bits: int, midrise: Collection[int] = ()) -> int:
    """Return how many leading planes a width needs: l + 1, or l if it is mid-rise or l = h.

    >>> [planes_needed(8, bits) for bits in (8, 7, 4, 2)]
    [8, 8, 5, 3]
    >>> planes_needed(8, 2, midrise=(2,))
    2
    """
    return bits if bits == stored_bits or bits in midrise else bits + 1


def plane_bytes(num_codes: int) -> int:
    """Return the size of one plane of `num_codes` codes, in bytes.

    >>> plane_bytes(8), plane_bytes(9)
    (1, 2)
    """
    return (num_codes + 7) // 8


def pack_plane(codes: Tensor, stored_bits: int, index: int) -> Tensor:
    """Return one plane of codes.

    Args:
        codes: int8 tensor of `stored_bits`-bit codes, on the CPU; it is flattened in row-major order.
        stored_bits: the stored width h.
        index: 0 for the top bit, h − 1 for the lowest.

    Returns:
        uint8 tensor of ceil(n / 8) bytes. Bit k of byte j is that of code 8·j + k; bits beyond the last code are zero.

    >>> pack_plane(torch.tensor([-2, -1, 0, 1], dtype=torch.int8), 2, 0)
    tensor([12], dtype=torch.uint8)
    """
    values = codes.detach().contiguous().reshape(-1).numpy().view(np.uint8)
    position = stored_bits - 1 - index
    packed = np.empty(plane_bytes(values.size), np.uint8)
    # In two's complement the top bit is the inverse of that of offset binary, and the others are the same.
    flip = np.uint8(1 << position if index == 0 else 0)
    for start in range(0, values.size, _CHUNK):
        part = (values[start : start + _CHUNK] ^ flip) & np.uint8(1 << position)
        packed[start // 8 : start // 8 + plane_bytes(part.size)] = np.packbits(part != 0, bitorder="little")
    return torch.from_numpy(packed)


def pack(codes: Tensor, stored_bits: int) -> list[Tensor]:
    """Return all planes of codes, from the top bit down; see `pack_plane`."""
    return [pack_plane(codes, stored_bits, index) for index in range(stored_bits)]


def empty_codes(num_codes: int, stored_bits: int) -> Tensor:
    """Return codes of which no plane is known yet: every bit zero, so −2^(h−1)."""
    return torch.full((num_codes,), -(1 << (stored_bits - 1)), dtype=torch.int8)


def leading_planes(codes: Tensor, num_planes: int, stored_bits: int) -> Tensor:
    """Return a flat copy of codes on the CPU that has the bits of the leading planes, and zero for the others.

    The tensor of a model's codes may have got further planes elsewhere: a state dict and a model share its memory.

    >>> leading_planes(torch.tensor([-3, 7, 0], dtype=torch.int8), 3, 4)
    tensor([-4,  6,  0], dtype=torch.int8)
    """
    # In two's complement all bits but the top one are those of offset binary.
    return codes.detach().cpu().clone().reshape(-1).bitwise_and_(-1 << (stored_bits - num_planes))


def merge_planes(codes: Tensor, planes: Mapping[int, Tensor], stored_bits: int) -> None:
    """Add planes to codes in which they are missing (their bits zero), in place.

    Args:
        codes: flat contiguous int8 tensor on the CPU.
        planes: packed planes by index.
        stored_bits: the stored width h.
    """
    values = codes.numpy().view(np.uint8)
    for index, plane in planes.items():
        raw = plane.numpy()
        position = stored_bits - 1 - index
        for start in range(0, values.size, _CHUNK):
            part = values[start : start + _CHUNK]
            bits = np.unpackbits(raw[start // 8 : start // 8 + plane_bytes(part.size)], bitorder="little")
            # Adding 2^position to −2^(h−1) + … is adding it to u; uint8 wraps around as int8 does.
            part += bits[: part.size] << np.uint8(position)


def unpack(planes: list[Tensor], num_codes: int, stored_bits: int) -> Tensor:
    """Return the codes that the leading planes describe, the bits of the other planes zero.

    Args:
        planes: the first k ≤ h packed planes.
        num_codes: number of codes n.
        stored_bits: the stored width h.

    Returns:
        Flat int8 tensor of n codes. `bitswitch.rounding.second_round` of it is exact for every width that needs k
        planes.

    >>> unpack(pack(torch.tensor([-3, 7, 0], dtype=torch.int8), 4)[:3], 3, 4)
    tensor([-4,  6,  0], dtype=torch.int8)
    """
    codes = empty_codes(num_codes, stored_bits)
    merge_planes(codes, dict(enumerate(planes)), stored_bits)
    return codes
