from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitswitch import _planes as planes_module
from bitswitch._planes import merge_planes, pack, pack_plane, plane_bytes, planes_needed, unpack
from bitswitch.rounding import second_round

WIDTHS = [(stored, bits) for stored in range(2, 9) for bits in range(2, stored + 1)]


def all_codes(bits: int) -> torch.Tensor:
    return torch.arange(-(1 << (bits - 1)), 1 << (bits - 1)).to(torch.int8)


def reference_rounding(code: int, stored: int, bits: int) -> int:
    """Round half up of code / 2^Δ, clipped, in exact integers and without shifts."""
    divisor = 2 ** (stored - bits)
    return min((2 * code + divisor) // (2 * divisor), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize(("stored", "bits"), WIDTHS)
def test_leading_planes_are_enough_for_every_code(stored: int, bits: int) -> None:
    codes = all_codes(stored)
    count = planes_needed(stored, bits)
    assert count == (stored if bits == stored else bits + 1)
    partial = unpack(pack(codes, stored)[:count], codes.numel(), stored)
    expected = [reference_rounding(code, stored, bits) for code in codes.tolist()]
    assert second_round(codes, stored, bits).tolist() == expected
    assert second_round(partial, stored, bits).tolist() == expected
    # The formula of the format, on what the planes give.
    shift = stored - bits
    for code, target in zip(partial.tolist(), expected, strict=True):
        u = code + 2 ** (stored - 1)
        rounded = min((u >> shift) + ((u >> (shift - 1)) & 1), 2**bits - 1) if shift else u
        assert rounded - 2 ** (bits - 1) == target


@pytest.mark.parametrize(("stored", "bits"), [(s, b) for s, b in WIDTHS if b < s])
def test_one_plane_less_is_not_enough(stored: int, bits: int) -> None:
    codes = all_codes(stored)
    partial = unpack(pack(codes, stored)[:bits], codes.numel(), stored)
    assert not torch.equal(second_round(partial, stored, bits), second_round(codes, stored, bits))


@pytest.mark.parametrize("stored", range(2, 9))
def test_planes_against_bits_taken_one_by_one(stored: int) -> None:
    codes = all_codes(stored)[torch.randperm(1 << stored, generator=torch.Generator().manual_seed(stored))][:-1]
    for index, plane in enumerate(pack(codes, stored)):
        expected = bytearray(plane_bytes(codes.numel()))
        for position, code in enumerate(codes.tolist()):
            bit = (code + 2 ** (stored - 1)) // 2 ** (stored - 1 - index) % 2
            expected[position // 8] += bit << (position % 8)
        assert bytes(plane.tolist()) == bytes(expected)


@given(st.integers(2, 8), st.integers(1, 70), st.data())
@settings(max_examples=60, deadline=None)
def test_round_trip_and_refinement(stored: int, count: int, data: st.DataObject) -> None:
    low, high = -(1 << (stored - 1)), (1 << (stored - 1)) - 1
    codes = torch.tensor(data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count)), dtype=torch.int8)
    first = data.draw(st.integers(0, stored))
    planes = pack(codes, stored)
    refined = unpack(planes[:first], count, stored)
    known = -(1 << (stored - first)) if first else 0
    assert refined.tolist() == [((code - low) & known) + low for code in codes.tolist()]
    merge_planes(refined, dict(list(enumerate(planes))[first:]), stored)
    assert torch.equal(refined, codes)


def test_chunks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes_module, "_CHUNK", 16)
    codes = torch.randint(-128, 128, (5, 11), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    planes = pack(codes, 8)
    assert torch.equal(unpack(planes, 55, 8), codes.reshape(-1))
    monkeypatch.undo()
    assert all(torch.equal(plane, pack_plane(codes, 8, index)) for index, plane in enumerate(planes))


def test_codes_that_are_not_contiguous_are_packed_in_row_major_order() -> None:
    codes = torch.arange(-6, 6).to(torch.int8).reshape(3, 4).t()
    assert torch.equal(unpack(pack(codes, 4), 12, 4).reshape(4, 3), codes)
