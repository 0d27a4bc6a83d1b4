"""Weights as bit planes in memory, of which a width reads those that it needs."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitswitch import kernels
from bitswitch._planes import pack_plane, planes_needed
from bitswitch.runtime.cache import DerivedCache
from bitswitch.runtime.tiles import MOST_PRODUCTS, Tiles, pack_tiles, unpack_codes

# Kernels read rows in words of 64 bits.
_ROW_BITS = 64
# Bits repacked at a time.
_CHUNK = 1 << 22
# Planes of ones by rows and columns, as long as a weight has them.
_SHARED_ONES: WeakValueDictionary[tuple[int, int], Tensor] = WeakValueDictionary()
_ONES_LOCK = threading.Lock()


class PlaneReader(Protocol):
    """Where planes can be read that an engine does not hold yet."""

    def read_planes(self, wanted: Mapping[str, range]) -> dict[str, list[Tensor]]:
        """Return planes as they are stored, flat and packed.

        Args:
            wanted: indices of planes by the name of the weight.

        Raises:
            MissingPlanesError: files are not there; they are named.
            CheckpointError: a file is damaged.
        """
        ...


class StoredWeight:
    """One weight as bit planes, shared by all layers that share it.

    The planes never change; further ones may be appended while others read. Rows begin at multiples of 8 bytes: where
    the row length K is not a multiple of 64, rows are repacked when the weight is opened.

    Kernels multiply by *factors*, which are the codes W̃_l. At a mid-rise width, whose codes c stand for (c + ½) · s_l,
    they are the odd integers 2c + 1 in half steps: l planes and one of ones after them, as codes of l + 1 bits that
    need no rounding.

    Args:
        name: of the layer that stores the weight.
        shape: out-first shape, (N, …) with K = the product of the rest.
        stored_bits: the stored width h.
        planes: the leading planes, as `append` takes them.
        derived: cache of what is derived from the planes; by default nothing is kept.
        midrise: widths whose levels are (c + ½) · s.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        stored_bits: int,
        planes: Sequence[Tensor] = (),
        derived: DerivedCache | None = None,
        midrise: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.derived = DerivedCache(0) if derived is None else derived
        self.shape = tuple(shape)
        self.stored_bits = stored_bits
        self.midrise = midrise
        self.num_rows = self.shape[0]
        self.num_columns = math.prod(self.shape[1:])
        self.row_bytes = -(-self.num_columns // _ROW_BITS) * (_ROW_BITS // 8)
        self._planes: tuple[Tensor, ...] = ()
        self._addresses: tuple[int, ...] = ()
        self._ones: Tensor | None = None
        self.append(planes)

    @classmethod
    def from_codes(
        cls,
        name: str,
        codes: Tensor,
        stored_bits: int,
        num_planes: int | None = None,
        derived: DerivedCache | None = None,
        midrise: tuple[int, ...] = (),
    ) -> StoredWeight:
        """Store int8 codes W̃_h, out-first.

        Args:
            name: of the layer that stores the weight.
            codes: int8 tensor on the CPU.
            stored_bits: the stored width h.
            num_planes: how many leading planes the codes are made of; all by default.
            derived: cache of what is derived from the planes.
            midrise: widths whose levels are (c + ½) · s.
        """
        stored = cls(name, codes.shape, stored_bits, derived=derived, midrise=midrise)
        rows = codes.reshape(codes.shape[0], -1)
        padding = stored.row_bytes * 8 - stored.num_columns
        if padding:
            # The lowest code has only zero bits.
            rows = F.pad(rows, (0, padding), value=-(1 << (stored_bits - 1)))
        count = stored_bits if num_planes is None else num_planes
        stored.append([pack_plane(rows, stored_bits, index).view(stored.num_rows, -1) for index in range(count)])
        return stored

    @property
    def num_planes(self) -> int:
        """How many leading planes are in memory, or mapped into it."""
        return len(self._planes)

    @property
    def num_weights(self) -> int:
        """N · K."""
        return self.num_rows * self.num_columns

    def missing(self, bits: int) -> range:
        """Return the indices of the planes that a width needs and that are not here."""
        return range(self.num_planes, self._needed(bits))

    def _needed(self, bits: int) -> int:
        return planes_needed(self.stored_bits, bits, self.midrise)

    def append(self, planes: Sequence[Tensor]) -> None:
        """Add the next planes: one-dimensional as in checkpoints, or (N, row_bytes) already."""
        by_rows = [self._by_rows(plane) for plane in planes]
        # Addresses last: whoever sees them also finds the tensors.
        self._planes = (*self._planes, *by_rows)
        self._addresses = tuple(plane.data_ptr() for plane in self._planes)

    def planes(self, bits: int) -> tuple[Tensor, ...]:
        """Return the planes of the factors of a width: uint8 (N, row_bytes) each."""
        own = self._planes[: self._needed(bits)]
        return (*own, self._plane_of_ones()) if bits in self.midrise else own

    def plane_addresses(self, bits: int) -> list[int]:
        """Return the addresses of `planes`."""
        own = list(self._addresses[: self._needed(bits)])
        return [*own, self._plane_of_ones().data_ptr()] if bits in self.midrise else own

    def form(self, bits: int) -> dict[str, int]:
        """Return what kernels are told of `planes`: the width that they store, and the width to round it to."""
        if bits in self.midrise:
            return {"stored_bits": bits + 1, "bits": bits + 1}
        return {"stored_bits": self.stored_bits, "bits": bits}

    def factors(self, bits: int) -> Tensor:
        """Return what inputs are multiplied with at a width: int8, out-first, contiguous."""
        factors = unpack_codes(self.planes(bits), **self.form(bits), columns=self.num_columns)
        return factors.view(self.shape)

    def kept_factors(self, bits: int) -> Tensor:
        """Return `factors`, from the cache if they are there."""
        return self.derived.get(("factors", self.name, bits), lambda: self.factors(bits), Tensor.numel)

    def codes(self, bits: int) -> Tensor:
        """Return the codes W̃_l of a width: int8, out-first, contiguous."""
        return self._unpacked(self._planes[: self._needed(bits)], bits).view(self.shape)

    def kept_tiles(self, bits: int) -> Tiles | None:
        """Return tiles for products with many rows; None if the cache has no room for those of all weights."""
        if kernels.native is None or self.num_columns > MOST_PRODUCTS or self.derived.expected > self.derived.limit:
            return None
        return self.derived.get(("tiles", self.name, bits), lambda: self._tiles(bits), lambda tiles: tiles.num_bytes)

    def _tiles(self, bits: int) -> Tiles:
        return pack_tiles(self.planes(bits), **self.form(bits), channels=self.num_columns)

    def rows(self, index: Tensor, bits: int) -> Tensor:
        """Return the codes of some rows: int8 (R, K).

        Args:
            index: int64 (R,), within 0 … N − 1.
            bits: the width l.
        """
        return self._unpacked([plane[index] for plane in self._planes[: self._needed(bits)]], bits)

    def _unpacked(self, planes: Sequence[Tensor], bits: int) -> Tensor:
        """Return the codes of a width from the stored planes that it needs: int8 (rows, K)."""
        # Rounding down is leaving the other planes out.
        stored_bits = bits if bits in self.midrise else self.stored_bits
        return unpack_codes(planes, stored_bits=stored_bits, bits=bits, columns=self.num_columns)

    def _plane_of_ones(self) -> Tensor:
        """Return a plane of set bits, unset behind the end of each row; one for all weights of a shape."""
        if self._ones is None:
            with _ONES_LOCK:
                key = (self.num_rows, self.num_columns)
                plane = _SHARED_ONES.get(key)
                if plane is None:
                    plane = _SHARED_ONES[key] = _plane_of_ones(self.num_rows, self.num_columns, self.row_bytes)
                self._ones = plane
        return self._ones

    def _by_rows(self, plane: Tensor) -> Tensor:
        if plane.dim() == 2 or self.num_columns % _ROW_BITS == 0:
            return plane.view(self.num_rows, self.row_bytes)
        return _repack(plane, self.num_rows, self.num_columns, self.row_bytes)

    def __repr__(self) -> str:
        return f"StoredWeight({self.name!r}, {self.shape}, {self.num_planes} of {self.stored_bits} planes)"


def _plane_of_ones(num_rows: int, num_columns: int, row_bytes: int) -> Tensor:
    row = torch.arange(row_bytes * 8, device="cpu").view(-1, 8) < num_columns
    packed = torch.from_numpy(np.packbits(row.numpy(), axis=1, bitorder="little")).reshape(1, -1)
    return packed.repeat(num_rows, 1)


def _repack(plane: Tensor, num_rows: int, num_columns: int, row_bytes: int) -> Tensor:
    """Give every row of a flat plane its own bytes, zero bits behind it."""
    flat = plane.numpy()
    out = np.zeros((num_rows, row_bytes), np.uint8)
    if num_columns % 8 == 0:
        out[:, : num_columns // 8] = flat.reshape(num_rows, -1)
        return torch.from_numpy(out)
    # Steps of 8 rows begin at a whole byte.
    step = max(8, _CHUNK // num_columns // 8 * 8)
    for start in range(0, num_rows, step):
        count = min(step, num_rows - start)
        begin, size = start * num_columns // 8, count * num_columns
        bits = np.unpackbits(flat[begin : begin + -(-size // 8)], bitorder="little")[:size]
        packed = np.packbits(bits.reshape(count, num_columns), axis=1, bitorder="little")
        out[start : start + count, : packed.shape[1]] = packed
    return torch.from_numpy(out)
