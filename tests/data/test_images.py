"""Image sets in memory: validation, normalisation, stratified splits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitswitch.data import IMAGENET_NORMALIZATION, ImageSet, Normalization, load_digits
from bitswitch.errors import ArgumentError, ConfigError


def _numbered(counts: list[int]) -> ImageSet:
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    images = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(images, labels, tuple("abcdefgh"[: len(counts)]))


def test_normalization_pixel_by_pixel() -> None:
    images = torch.randint(256, (2, 3, 2, 3), dtype=torch.uint8)
    got = IMAGENET_NORMALIZATION(images)
    assert got.dtype == torch.float32
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, images.shape)).tolist():
        mean, std = IMAGENET_NORMALIZATION.mean[c], IMAGENET_NORMALIZATION.std[c]
        assert float(got[n, c, i, j]) == pytest.approx((int(images[n, c, i, j]) / 255 - mean) / std, abs=1e-6)


@pytest.mark.parametrize(("mean", "std"), [((), ()), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))])
def test_impossible_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="positive std"):
        Normalization(mean, std)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.floats(0.05, 0.95), st.integers(0, 2**40))
def test_split_is_stratified_complete_and_seeded(counts: list[int], fraction: float, seed: int) -> None:
    data = _numbered(counts)
    rest, part = data.split(fraction, seed)
    assert sorted(rest.images.flatten().tolist() + part.images.flatten().tolist()) == list(range(len(data)))
    for label, count in enumerate(counts):
        assert int((part.labels == label).sum()) == round(count * fraction)
    for image, label in zip(part.images.flatten().tolist(), part.labels.tolist(), strict=True):
        assert data.labels[image] == label
    assert torch.equal(part.images, data.split(fraction, seed)[1].images)


def test_another_seed_is_another_split() -> None:
    data = _numbered([50, 50])
    assert not torch.equal(data.split(0.5, 0)[1].images, data.split(0.5, 1)[1].images)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_fraction(fraction: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        _numbered([2]).split(fraction)


def test_validation() -> None:
    images, labels = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(ArgumentError, match=r"images are uint8 .* got torch.float32"):
        ImageSet(images.float(), labels, ("a", "b"))
    with pytest.raises(ArgumentError, match=r"labels are int64 \(2,\); got torch.int64 \(1,\)"):
        ImageSet(images, labels[:1], ("a", "b"))
    with pytest.raises(ConfigError, match="row 1: label 1 is not one of 1 classes"):
        ImageSet(images, labels, ("a",))


def test_digits() -> None:
    train, held_out = load_digits()
    assert (len(train), len(held_out)) == (1438, 359)
    assert train.images.shape[1:] == (1, 8, 8)
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    assert torch.equal(held_out.images, load_digits()[1].images)
    assert not torch.equal(held_out.images, load_digits(1)[1].images)
