"""Tiles and codes from planes, and products with many rows, equal their references bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitswitch import kernels
from bitswitch._planes import planes_needed
from bitswitch.errors import ArgumentError, PrecisionError
from bitswitch.rounding import int_range, second_round
from bitswitch.runtime import kernels as fast
from bitswitch.runtime import reference
from bitswitch.runtime.conv_kernels import pack_conv, pack_conv_planes
from bitswitch.runtime.tiles import Tiles, linear_tiled, pack_tiles, tiles_bytes, tiles_of_codes, unpack_codes

widths = st.tuples(st.integers(2, 8), st.integers(2, 8)).map(lambda pair: (max(pair), min(pair)))
native_only = pytest.mark.skipif(kernels.native is None, reason="no compiled kernels")


def random_codes(out: int, columns: int, stored_bits: int, seed: int) -> torch.Tensor:
    low, high = int_range(stored_bits)
    random = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, (out, columns), dtype=torch.int8, generator=random)


def same(a: Tiles, b: Tiles) -> bool:
    return torch.equal(a.data, b.data) and torch.equal(a.row_sums, b.row_sums)


@given(
    group_out=st.integers(1, 35),
    groups=st.integers(1, 3),
    channels=st.one_of(st.integers(1, 70), st.sampled_from([64, 128, 129, 512, 600])),
    taps=st.sampled_from([1, 2, 9, 25]),
    widths=widths,
    seed=st.integers(0, 2**31),
)
def test_tiles_from_planes_equal_those_of_codes(
    isa: str, group_out: int, groups: int, channels: int, taps: int, widths: tuple[int, int], seed: int
) -> None:
    stored_bits, bits = widths
    codes = random_codes(group_out * groups, channels * taps, stored_bits, seed)
    planes = reference.pack_rows(codes, stored_bits)[: planes_needed(stored_bits, bits)]
    expected = second_round(codes, stored_bits, bits)
    assert torch.equal(unpack_codes(planes, stored_bits=stored_bits, bits=bits, columns=channels * taps), expected)
    tiles = pack_tiles(planes, stored_bits=stored_bits, bits=bits, channels=channels, taps=taps, groups=groups)
    assert same(tiles, tiles_of_codes(expected.view(-1, channels, taps), groups))
    assert tiles.num_bytes == tiles_bytes(codes.shape[0], channels, taps, groups)


@native_only
@pytest.mark.parametrize(("shape", "groups"), [((20, 6, 3, 3), 1), ((20, 3, 3, 3), 4), ((33, 1, 5, 5), 33)])
def test_convolutions_are_packed_from_planes(isa: str, shape: tuple[int, int, int, int], groups: int) -> None:
    codes = random_codes(shape[0], shape[1] * shape[2] * shape[3], 8, 0)
    planes = reference.pack_rows(codes, 8)
    for bits in (8, 3):
        made = pack_conv_planes(planes, shape, groups, stored_bits=8, bits=bits)
        expected = pack_conv(second_round(codes, 8, bits).view(shape), groups)
        assert torch.equal(made.data, expected.data)
        assert torch.equal(made.row_sums, expected.row_sums)
        assert (made.shape, made.groups, made.depthwise) == (shape, groups, expected.depthwise)


@native_only
@given(
    rows=st.integers(0, 40),
    out=st.integers(1, 150),
    inner=st.one_of(st.integers(1, 80), st.sampled_from([256, 515, 1024])),
    bits=st.integers(2, 8),
    zero_point=st.sampled_from([0, 128, 255]),
    dynamic=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_products_of_tiles(
    isa: str, rows: int, out: int, inner: int, bits: int, zero_point: int, dynamic: bool, bias: bool, seed: int
) -> None:
    planes = reference.pack_rows(random_codes(out, inner, 8, seed), 8)
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (rows, inner), dtype=torch.uint8, generator=random)
    multiplier = torch.randn(out, 1, generator=random)
    offset = torch.randn(out, generator=random) if bias else None
    scale = torch.rand(rows, generator=random) if dynamic else None
    tiles = pack_tiles(planes, stored_bits=8, bits=bits, channels=inner)
    got = linear_tiled(tiles, x, multiplier, offset, zero_point=zero_point, row_scale=scale)
    expected = reference.linear_planes(
        planes, x, multiplier, offset, stored_bits=8, bits=bits, zero_point=zero_point, row_scale=scale
    )
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("rows", [9, 33, 130])
@pytest.mark.parametrize(("out", "inner", "group_size"), [(300, 700, 0), (64, 512, 128), (70, 300, 36), (17, 66000, 0)])
def test_many_rows_straight_from_planes(isa: str, rows: int, out: int, inner: int, group_size: int) -> None:
    planes = reference.pack_rows(random_codes(out, inner, 8, 1), 8)
    x = torch.randint(0, 256, (rows, inner), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    multiplier = torch.randn(out, -(-inner // group_size) if group_size else 1)
    for bits in (8, 3):
        for zero_point in (0, 128):
            options: dict[str, Any] = {"bits": bits, "zero_point": zero_point, "group_size": group_size}
            got = fast.linear_planes(planes, x, multiplier, stored_bits=8, **options)
            expected = reference.linear_planes(planes, x, multiplier, stored_bits=8, **options)
            assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


@native_only
def test_the_number_of_threads_does_not_matter(isa: str) -> None:
    planes = reference.pack_rows(random_codes(200, 640, 8, 2), 8)
    x = torch.randint(0, 256, (70, 640), dtype=torch.uint8)
    threads, outputs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs.append(fast.linear_planes(planes, x, torch.ones(200, 1), stored_bits=8, bits=4, zero_point=7))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_the_largest_sums_do_not_overflow(isa: str) -> None:
    planes = reference.pack_rows(torch.full((2, 65536), -128, dtype=torch.int8), 8)
    x = torch.full((9, 65536), 255, dtype=torch.uint8)
    got = fast.linear_planes(planes, x, torch.ones(2, 1), stored_bits=8, bits=8)
    assert torch.equal(got, torch.full((9, 2), -128.0 * 255 * 65536))


def test_errors() -> None:
    planes = reference.pack_rows(random_codes(4, 64, 8, 0), 8)
    with pytest.raises(ArgumentError, match="4 output channels cannot be divided into 3 groups"):
        pack_tiles(planes, stored_bits=8, bits=8, channels=64, groups=3)
    with pytest.raises(PrecisionError, match="4 bits need 5 planes, and 4 are given"):
        pack_tiles(planes[:4], stored_bits=8, bits=4, channels=64)
    with pytest.raises(PrecisionError, match="no 9-bit weights in 8-bit planes"):
        unpack_codes(planes, stored_bits=8, bits=9, columns=64)
    with pytest.raises(ArgumentError, match=r"plane 0 must be contiguous uint8 \(4, 16\)"):
        unpack_codes(planes, stored_bits=8, bits=8, columns=65)
    with pytest.raises(ArgumentError, match="do not fit into 32 bits"):
        tiles_of_codes(torch.zeros(1, 65537, 1, dtype=torch.int8))


@native_only
def test_tensors_that_do_not_fit_the_tiles() -> None:
    tiles = tiles_of_codes(torch.zeros(4, 64, 1, dtype=torch.int8))
    x, multiplier = torch.zeros(3, 64, dtype=torch.uint8), torch.ones(4, 1)
    with pytest.raises(ArgumentError, match="for 60 inputs"):
        linear_tiled(tiles, x[:, :60].contiguous(), multiplier)
    with pytest.raises(ArgumentError, match="row_scale must be 3 contiguous"):
        linear_tiled(tiles, x, multiplier, row_scale=torch.ones(2))
    with pytest.raises(ArgumentError, match="x_codes must be 192 contiguous"):
        linear_tiled(tiles, x.float(), multiplier)
