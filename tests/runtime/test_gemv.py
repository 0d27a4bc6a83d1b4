"""Kernels for few rows and for codes of activations equal their references, bit for bit, on each instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitswitch import kernels
from bitswitch._planes import planes_needed
from bitswitch.errors import ArgumentError, PrecisionError
from bitswitch.rounding import int_range, second_round
from bitswitch.runtime import kernels as fast
from bitswitch.runtime import reference


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, signs of zeros and NaN included."""
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


def compare(
    seed: int,
    rows: int,
    out: int,
    inner: int,
    stored_bits: int,
    bits: int,
    zero_point: int = 0,
    group_size: int = 0,
    dynamic: bool = False,
    bias: bool = False,
) -> None:
    random = torch.Generator().manual_seed(seed)
    low, high = int_range(stored_bits)
    codes = torch.randint(low, high + 1, (out, inner), dtype=torch.int8, generator=random)
    planes = reference.pack_rows(codes, stored_bits)[: planes_needed(stored_bits, bits)]
    x = torch.randint(0, 256, (rows, inner), dtype=torch.uint8, generator=random)
    groups = -(-inner // group_size) if group_size else 1
    multiplier = torch.randn(out, groups, generator=random)
    offset = torch.randn(out, generator=random) if bias else None
    scale = torch.rand(rows, generator=random) if dynamic else None
    options: dict[str, Any] = {
        "stored_bits": stored_bits,
        "bits": bits,
        "zero_point": zero_point,
        "group_size": group_size,
        "row_scale": scale,
    }
    assert torch.equal(reference.weight_codes(planes, stored_bits, bits, inner), second_round(codes, stored_bits, bits))
    expected = reference.linear_planes(planes, x, multiplier, offset, **options)
    assert same(fast.linear_planes(planes, x, multiplier, offset, **options), expected)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 19),
    out=st.integers(0, 40),
    inner=st.one_of(st.integers(0, 300), st.sampled_from([128, 512, 576, 1024, 1504])),
    widths=st.tuples(st.integers(2, 8), st.integers(2, 8)).map(lambda pair: (max(pair), min(pair))),
    zero_point=st.sampled_from([0, 0, 128, 255, 77]),
    group_size=st.sampled_from([0, 0, 32, 64, 96, 128, 256, 1, 5, 40, 48]),
    dynamic=st.booleans(),
    bias=st.booleans(),
)
def test_linear(
    isa: str,
    seed: int,
    rows: int,
    out: int,
    inner: int,
    widths: tuple[int, int],
    zero_point: int,
    group_size: int,
    dynamic: bool,
    bias: bool,
) -> None:
    compare(seed, rows, out, inner, *widths, zero_point, group_size, dynamic, bias)


@pytest.mark.parametrize("stored_bits", range(2, 9))
@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
@pytest.mark.parametrize("zero_point", [0, 128])
def test_linear_at_each_width(isa: str, stored_bits: int, group_size: int, zero_point: int) -> None:
    for bits in range(2, stored_bits + 1):
        for rows in (1, 2, 3):
            compare(bits, rows, 18, 512 + 192, stored_bits, bits, zero_point, group_size)


@pytest.mark.parametrize("group_size", [0, 65536 + 128, 70000])
@pytest.mark.parametrize("zero_point", [0, 255])
def test_long_rows_do_not_overflow(isa: str, group_size: int, zero_point: int) -> None:
    inner = 2 * 65536 + 2 * 128
    codes = torch.full((3, inner), -128, dtype=torch.int8)
    x = torch.full((2, inner), 255 - zero_point, dtype=torch.uint8)
    planes = reference.pack_rows(codes, 8)
    multiplier = torch.full((3, -(-inner // group_size) if group_size else 1), 0.1)
    for bits in (8, 4):
        options: dict[str, Any] = {"stored_bits": 8, "bits": bits, "group_size": group_size, "zero_point": zero_point}
        assert same(
            fast.linear_planes(planes, x, multiplier, **options),
            reference.linear_planes(planes, x, multiplier, **options),
        )


def test_threads_do_not_change_the_result(isa: str) -> None:
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            compare(0, 3, 413, 1088, 8, 4, 128, 64, True, True)
    finally:
        torch.set_num_threads(threads)


def test_rows_equal_those_of_a_float_layer() -> None:
    codes = torch.randint(-128, 128, (6, 100), dtype=torch.int8)
    x = torch.randint(0, 256, (3, 100), dtype=torch.uint8)
    y = fast.linear_planes(reference.pack_rows(codes, 8), x, torch.ones(6, 1), stored_bits=8, bits=8, zero_point=3)
    assert torch.equal(y, (x.float() - 3) @ codes.float().T)


floats = st.one_of(
    st.floats(width=32),
    st.integers(-600, 600).map(lambda i: i / 2),
    st.sampled_from([0.0, -0.0, 1e-45, float("inf"), float("nan")]),
)


@given(
    values=st.lists(floats, max_size=70),
    scale=st.sampled_from([1.0, 0.5, 0.1, 3e-39, 1e30]),
    top=st.integers(1, 8).map(lambda bits: 2**bits - 1),
    zero_point=st.integers(0, 255),
    half=st.booleans(),
)
def test_codes(isa: str, values: list[float], scale: float, top: int, zero_point: int, half: bool) -> None:
    x = torch.tensor(values, dtype=torch.bfloat16 if half else torch.float32)
    zero_point = min(zero_point, top)
    expected = reference.quantize_codes(x, scale, zero_point, top)
    assert torch.equal(fast.quantize_codes(x, scale, zero_point, top), expected)


@given(
    values=st.lists(floats, max_size=70),
    cols=st.integers(1, 40),
    half=st.booleans(),
)
def test_row_codes(isa: str, values: list[float], cols: int, half: bool) -> None:
    count = len(values) // cols * cols
    x = torch.tensor(values[:count], dtype=torch.bfloat16 if half else torch.float32).reshape(-1, cols)
    codes, scales = fast.quantize_rows(x)
    expected, expected_scales = reference.quantize_rows(x)
    assert torch.equal(codes, expected)
    assert same(scales, expected_scales)


def test_many_codes_on_several_threads(isa: str) -> None:
    x = torch.randn(50_001, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fast.quantize_codes(x, 0.01, 100, 255), reference.quantize_codes(x, 0.01, 100, 255))
    rows = x[:50_000].reshape(1000, 50)
    for ours, theirs in zip(fast.quantize_rows(rows), reference.quantize_rows(rows), strict=True):
        assert torch.equal(ours, theirs)
    assert fast.quantize_rows(torch.empty(3, 0))[1].tolist() == [1.0, 1.0, 1.0]


def test_what_cannot_be_is_refused() -> None:
    planes = reference.pack_rows(torch.zeros(4, 64, dtype=torch.int8), 8)
    x, m = torch.zeros(2, 64, dtype=torch.uint8), torch.ones(4, 1)
    with pytest.raises(PrecisionError, match="4 bits need 5 planes, and 4 are given"):
        fast.linear_planes(planes[:4], x, m, stored_bits=8, bits=4)
    with pytest.raises(PrecisionError, match="no 9-bit weights"):
        fast.linear_planes(planes, x, m, stored_bits=8, bits=9)
    with pytest.raises(ArgumentError, match=r"plane 0 must have shape \(4, 16\), not \(4, 8\)"):
        fast.linear_planes(planes, torch.zeros(2, 65, dtype=torch.uint8), m, stored_bits=8, bits=8)
    with pytest.raises(ArgumentError, match=r"multiplier must have shape \(4, 2\)"):
        fast.linear_planes(planes, x, m, stored_bits=8, bits=8, group_size=32)
    with pytest.raises(ArgumentError, match=r"x_codes must be torch\.uint8"):
        fast.linear_planes(planes, x.float(), m, stored_bits=8, bits=8)
    with pytest.raises(ArgumentError, match="contiguous"):
        fast.linear_planes(planes, torch.zeros(64, 2, dtype=torch.uint8).T, m, stored_bits=8, bits=8)
    with pytest.raises(ArgumentError, match="zero point"):
        fast.quantize_codes(torch.zeros(3), 1.0, 16, 15)
    if kernels.native is not None:
        with pytest.raises(ValueError, match="too few planes"):
            kernels.native.linear_planes([0], 8, 4, 1, 64, 8, 0, 0, 0, 0, 1, 64, 0, 0, 0)


def test_bandwidth_is_measured(isa: str) -> None:
    if kernels.native is None:
        pytest.skip("needs the compiled kernels")
    data = torch.zeros(1 << 20, dtype=torch.uint8)
    assert all(kernels.native.read_bandwidth(data.data_ptr(), data.numel(), streams) > 0 for streams in (1, 2, 5))
