"""Double Rounding against a definition in unbounded Python integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitswitch.errors import PrecisionError
from bitswitch.rounding import dequantize, double_round, first_round, int_range, second_round, uint_range

WIDTHS = range(2, 9)
PAIRS = [(h, low) for h in WIDTHS for low in range(2, h + 1)]


def half_up(value: Fraction) -> int:
    """Round to the nearest integer, ties up: floor(value + 1/2)."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def defined(code: int, stored_bits: int, bits: int) -> int:
    """Eq. (2) with ties up, by its definition."""
    rounded = half_up(Fraction(code, 2 ** (stored_bits - bits)))
    return max(-(2 ** (bits - 1)), min(rounded, 2 ** (bits - 1) - 1))


@pytest.mark.parametrize(("stored_bits", "bits"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64])
def test_second_round_equals_its_definition_for_all_codes(stored_bits: int, bits: int, dtype: torch.dtype) -> None:
    n, p = int_range(stored_bits)
    codes = list(range(n, p + 1))
    got = second_round(torch.tensor(codes, dtype=dtype), stored_bits, bits)
    assert got.dtype == dtype
    assert got.tolist() == [defined(code, stored_bits, bits) for code in codes]


@pytest.mark.parametrize(("stored_bits", "bits"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32])
def test_midrise_levels_are_the_nearest_of_all_weights(stored_bits: int, bits: int, dtype: torch.dtype) -> None:
    n, p = int_range(stored_bits)
    step = 2 ** (stored_bits - bits)
    stored = torch.arange(n, p + 1).to(dtype)
    codes = second_round(stored, stored_bits, bits, midrise=(bits,))
    assert codes.dtype == dtype
    levels = dequantize(codes, torch.tensor(1.0), stored_bits, bits, midrise=(bits,))
    all_levels = (torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) + 0.5) * step
    assert torch.equal(levels.unique(), all_levels)
    if bits < stored_bits:
        distances = (stored[:, None].float() - all_levels).abs()
        assert torch.equal((stored.float() - levels).abs(), distances.min(1).values)
    assert torch.equal(levels.flip(0), -levels)


@pytest.mark.parametrize(("stored_bits", "bits"), PAIRS)
def test_second_round_depends_on_the_leading_bits_only(stored_bits: int, bits: int) -> None:
    n, p = int_range(stored_bits)
    kept = bits + 1 if bits < stored_bits else stored_bits
    for code in range(n, p + 1):
        offset = code - n
        cut = (offset >> (stored_bits - kept) << (stored_bits - kept)) + n
        a, b = second_round(torch.tensor([code, cut]), stored_bits, bits).tolist()
        assert a == b


def test_second_round_leaves_its_input_alone() -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8)
    before = codes.clone()
    second_round(codes, 8, 3)
    floats = codes.float()
    second_round(floats, 8, 3)
    assert torch.equal(codes, before)
    assert torch.equal(floats, before.float())


def test_rounding_up_to_more_bits_is_refused() -> None:
    with pytest.raises(PrecisionError, match="cannot round 4-bit codes up to 6 bits"):
        second_round(torch.zeros(1), 4, 6)


def test_ranges() -> None:
    assert [int_range(b) for b in WIDTHS] == [(-(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in WIDTHS]
    assert [uint_range(b) for b in WIDTHS] == [(0, 2**b - 1) for b in WIDTHS]


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    scale=st.floats(2.0**-10, 8, width=32),
    pair=st.sampled_from(PAIRS),
)
def test_double_round_equals_exact_arithmetic(weights: list[float], scale: float, pair: tuple[int, int]) -> None:
    stored_bits, bits = pair
    w, s = torch.tensor(weights), torch.tensor(scale)
    n, p = int_range(stored_bits)
    expected = []
    for quotient in (w / s).tolist():  # the float32 quotient is part of the definition
        code = max(n, min(round(Fraction(quotient)), p))  # Fraction rounds ties to even
        expected.append(defined(code, stored_bits, bits))
    assert double_round(w, s, stored_bits, bits).tolist() == expected
    stored = first_round(w, s, stored_bits).to(torch.int8)
    assert second_round(stored, stored_bits, bits).tolist() == expected


@pytest.mark.parametrize(("stored_bits", "bits"), PAIRS)
def test_dequantize_is_exact_up_to_one_product(stored_bits: int, bits: int) -> None:
    n, p = int_range(bits)
    codes = torch.arange(n, p + 1)
    scale = torch.tensor(0.0123)
    expected = [code * (2.0 ** (stored_bits - bits)) * scale.item() for code in range(n, p + 1)]
    assert torch.equal(dequantize(codes, scale, stored_bits, bits), torch.tensor(expected, dtype=torch.float32))
