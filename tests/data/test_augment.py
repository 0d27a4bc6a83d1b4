"""Vectorised crops and flips against loops over samples and pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitswitch.data import CropFlip
from bitswitch.data.order import seeded_generator
from bitswitch.errors import ConfigError


def _brute_force(image: Tensor, padding: int, top: int, left: int, mirrored: int) -> Tensor:
    height, width = image.shape[1:]
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row, column = i + top - padding, j + left - padding
            if 0 <= row < height and 0 <= column < width:
                out[:, i, width - 1 - j if mirrored else j] = image[:, row, column]
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(0, 4), st.booleans())
def test_equals_the_loop(n: int, channels: int, height: int, width: int, padding: int, flip: bool) -> None:
    images = torch.randint(1, 256, (n, channels, height, width), dtype=torch.uint8)
    before = images.clone()
    augmentation = CropFlip(padding, flip)
    parameters = augmentation.draw(n, seeded_generator(n, height))
    got = augmentation.apply(images, parameters)
    for image, result, row in zip(images, got, parameters.tolist(), strict=True):
        assert torch.equal(result, _brute_force(image, padding, *row))
    assert torch.equal(images, before)


def test_all_shifts_and_both_sides_are_equally_likely() -> None:
    parameters = CropFlip(2, flip=True).draw(20_000, seeded_generator(0))
    counts = torch.bincount((parameters[:, 0] * 5 + parameters[:, 1]) * 2 + parameters[:, 2], minlength=50)
    assert counts.shape == (50,)
    # 400 expected in each of 50 cells, standard deviation 20.
    assert int((counts - 400).abs().max()) < 100
    assert int(CropFlip(2, flip=False).draw(100, seeded_generator(0))[:, 2].max()) == 0


def test_negative_padding() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        CropFlip(-1, flip=True)
