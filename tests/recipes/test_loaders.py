"""Parts of image sets."""

from __future__ import annotations

import torch

from bitswitch.data import ImageSet
from bitswitch.recipes.loaders import sample


def sorted_set() -> ImageSet:
    labels = torch.arange(10).repeat_interleave(100)
    images = torch.arange(1000).view(-1, 1, 1, 1).to(torch.uint8)
    return ImageSet(images, labels, tuple("0123456789"))


def test_a_part_of_a_sorted_set_has_all_classes() -> None:
    part = sample(sorted_set(), 200)
    counts = torch.bincount(part.labels, minlength=10)
    assert len(part) == 200
    # 20 of each class are expected, with a standard deviation of about 4.
    assert counts.min() >= 8
    assert counts.max() <= 32


def test_the_part_is_always_the_same_and_not_repeated() -> None:
    torch.manual_seed(1)
    first = sample(sorted_set(), 50)
    torch.manual_seed(2)
    second = sample(sorted_set(), 50)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.images, second.images)


def test_more_than_there_are_is_all() -> None:
    assert len(sample(sorted_set(), 5000)) == len(sample(sorted_set(), None)) == 1000
