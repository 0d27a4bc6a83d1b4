from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitswitch._planes import pack, planes_needed
from bitswitch.rounding import second_round
from bitswitch.runtime.stored import StoredWeight


def random_codes(shape: tuple[int, ...], stored_bits: int, seed: int = 0) -> torch.Tensor:
    half = 1 << (stored_bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-half, half, shape, generator=generator).to(torch.int8)


@given(st.integers(1, 20), st.sampled_from([1, 3, 7, 8, 24, 63, 64, 65, 128, 200]), st.data())
def test_codes_of_every_width_come_back(rows: int, columns: int, data: st.DataObject) -> None:
    stored_bits = data.draw(st.integers(2, 8))
    bits = data.draw(st.integers(2, stored_bits))
    midrise = data.draw(st.sampled_from([(), (bits,)])) if bits < 8 else ()
    codes = random_codes((rows, columns), stored_bits)
    needed = planes_needed(stored_bits, bits, midrise)
    expected = second_round(codes, stored_bits, bits, midrise)
    for stored in (
        StoredWeight.from_codes("w", codes, stored_bits, midrise=midrise),
        StoredWeight("w", codes.shape, stored_bits, pack(codes, stored_bits), midrise=midrise),
        StoredWeight("w", codes.shape, stored_bits, pack(codes, stored_bits)[:needed], midrise=midrise),
    ):
        assert list(stored.missing(bits)) == []
        assert torch.equal(stored.codes(bits), expected)
        assert torch.equal(stored.factors(bits), 2 * expected + 1 if midrise else expected)
        index = torch.tensor([rows - 1, 0, rows // 2])
        assert torch.equal(stored.rows(index, bits), expected[index])


def test_many_rows_are_repacked_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitswitch.runtime.stored._CHUNK", 100)
    codes = random_codes((37, 9), 8)
    assert torch.equal(StoredWeight("w", codes.shape, 8, pack(codes, 8)).codes(8), codes)


@pytest.mark.parametrize("columns", [5, 16, 64, 100])
def test_rows_are_words_and_what_is_behind_them_is_zero(columns: int) -> None:
    codes = random_codes((6, columns), 8)
    stored = StoredWeight("w", codes.shape, 8, pack(codes, 8))
    assert stored.row_bytes % 8 == 0
    midrise = StoredWeight("w", codes.shape, 8, pack(codes, 8), midrise=(2,))
    assert midrise.plane_addresses(2) == [plane.data_ptr() for plane in midrise.planes(2)]
    for plane in (*stored.planes(8), *midrise.planes(2)):
        assert plane.shape == (6, stored.row_bytes)
        bits = np.unpackbits(plane.numpy(), axis=1, bitorder="little")
        assert not bits[:, columns:].any()


def test_weights_of_a_shape_have_one_plane_of_ones_while_they_exist() -> None:
    def midrise(shape: tuple[int, ...]) -> StoredWeight:
        return StoredWeight.from_codes("w", random_codes(shape, 8), 8, midrise=(2,))

    weights = [midrise((6, 4, 25)), midrise((6, 100)), midrise((6, 99)), midrise((12, 100))]
    addresses = [weight.plane_addresses(2)[-1] for weight in weights]
    assert addresses[0] == addresses[1]
    assert len(set(addresses)) == 3
    shared = weakref.ref(weights[0].planes(2)[-1])
    assert shared() is not None
    weights.clear()
    gc.collect()
    assert shared() is None


def test_whole_words_are_not_copied() -> None:
    planes = pack(random_codes((4, 128), 8), 8)
    stored = StoredWeight("w", (4, 128), 8, planes)
    assert stored.plane_addresses(8) == [plane.data_ptr() for plane in planes]


def test_shapes_beyond_two_dimensions_are_kept() -> None:
    codes = random_codes((4, 3, 2, 5), 6)
    stored = StoredWeight.from_codes("w", codes, 6)
    assert torch.equal(stored.codes(6), codes)
    assert (stored.num_rows, stored.num_columns, stored.num_weights) == (4, 30, 120)


def test_planes_are_missing_until_they_are_appended() -> None:
    codes = random_codes((4, 64), 8)
    planes = pack(codes, 8)
    stored = StoredWeight("w", (4, 64), 8, planes[:3])
    assert [list(stored.missing(bits)) for bits in (2, 4, 8)] == [[], [3, 4], [3, 4, 5, 6, 7]]
    stored.append(planes[3:5])
    assert list(stored.missing(4)) == []
    assert torch.equal(stored.codes(4), second_round(codes, 8, 4))
