"""Loaders of images in memory: determinism, resuming, sharding, formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bitswitch.data import CIFAR_AUGMENTATION, IMAGENET_NORMALIZATION, ImageSet, MemoryLoader, Normalization
from bitswitch.data.loader import Batch
from bitswitch.data.order import seeded_generator
from bitswitch.errors import ConfigError


def _data(n: int = 30) -> ImageSet:
    images = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=seeded_generator(5))
    return ImageSet(images, torch.arange(n) % 3, ("a", "b", "c"))


def _loader(train: bool = True, batch_size: int = 6, **options: Any) -> MemoryLoader:
    options = {"normalization": IMAGENET_NORMALIZATION, "augmentation": CIFAR_AUGMENTATION, **options}
    return MemoryLoader(_data(), batch_size, train=train, **options)


def _same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_batches_are_the_augmented_normalised_samples() -> None:
    loader, data = _loader(seed=4), _data()
    parameters = CIFAR_AUGMENTATION.draw(len(data), seeded_generator(4, 2, 1))
    order = loader.order.samples(2)
    for step, (images, labels) in enumerate(loader.epoch(2)):
        for k, sample in enumerate(order[6 * step : 6 * step + 6].tolist()):
            crop = CIFAR_AUGMENTATION.apply(data.images[sample : sample + 1], parameters[sample : sample + 1])
            assert torch.equal(images[k], IMAGENET_NORMALIZATION(crop)[0])
            assert labels[k] == data.labels[sample]
    assert len(loader) == loader.steps_per_epoch == 5


def test_the_same_whatever_came_before() -> None:
    a, b = _loader(seed=1), _loader(seed=1)
    list(a.epoch(0))
    torch.rand(7)
    assert _same(list(a.epoch(3)), list(b.epoch(3)))
    assert not _same(list(a.epoch(3)), list(a.epoch(4)))
    assert not _same(list(a.epoch(3)), list(_loader(seed=2).epoch(3)))


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    list(_loader().epoch(1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("start", range(6))
def test_resuming_in_the_middle(start: int) -> None:
    assert _same(list(_loader().epoch(1, start)), list(_loader().epoch(1))[start:])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_are_one_process(world_size: int) -> None:
    ranks = [list(_loader(rank=r, world_size=world_size).epoch(2)) for r in range(world_size)]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]
    assert _same([(x, y) for x, y in joined], list(_loader().epoch(2)))


def test_evaluation_is_plain_complete_and_sharded_without_duplicates() -> None:
    whole = list(_loader(train=False, batch_size=7))
    assert [len(labels) for _, labels in whole] == [7, 7, 7, 7, 2]
    assert torch.equal(torch.cat([x for x, _ in whole]), IMAGENET_NORMALIZATION(_data().images))
    ranks = [list(_loader(train=False, batch_size=7, rank=r, world_size=4)) for r in range(4)]
    assert sum(len(labels) for batches in ranks for _, labels in batches) == 30
    assert all(len(labels) for batches in ranks for _, labels in batches)


def test_split_is_complete_stratified_and_leaves_the_loader_alone() -> None:
    whole = _loader(train=False, batch_size=7)
    rest, part = whole.split(0.3, seed=1)
    assert (whole.num_samples, rest.num_samples, part.num_samples) == (30, 21, 9)
    labels = [torch.cat([labels for _, labels in loader]) for loader in (whole, rest, part)]
    assert [labels[2].bincount().tolist(), len(labels[0])] == [[3, 3, 3], 30]
    images = [torch.cat([images for images, _ in loader]) for loader in (whole, rest, part)]
    rows = {tuple(image.flatten().tolist()) for image in torch.cat(images[1:])}
    assert rows == {tuple(image.flatten().tolist()) for image in images[0]}
    assert _same(list(whole.split(0.3, seed=1)[1]), list(part))
    assert not _same(list(whole.split(0.3, seed=2)[1]), list(part))
    with pytest.raises(ConfigError, match="fraction"):
        whole.split(1.0)


def test_channels_last_changes_the_layout_only() -> None:
    for (x, _), (u, _) in zip(_loader(channels_last=True).epoch(0), _loader().epoch(0), strict=True):
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert u.is_contiguous()
        assert torch.equal(x, u)


def test_device() -> None:
    images, labels = next(iter(_loader(device="meta")))
    assert images.device.type == labels.device.type == "meta"


def test_channels_must_fit_and_bad_steps_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="the normalization has 1 channels, the images 3"):
        _loader(normalization=Normalization((0.5,), (0.5,)))
    with pytest.raises(ConfigError, match="an epoch has 5 steps"):
        _loader().epoch(0, 6)


def test_a_sample_of_sorted_images_has_all_classes() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    data = ImageSet(torch.zeros(1000, 3, 1, 1, dtype=torch.uint8), labels, tuple("0123456789"))
    loader = MemoryLoader(data, 50, train=False, normalization=IMAGENET_NORMALIZATION).sample(200)
    counts = loader.labels.bincount(minlength=10)
    assert loader.num_samples == counts.sum() == 200
    # 20 of each class are expected, with a standard deviation of about 4.
    assert counts.min() >= 8
    assert counts.max() <= 32


def test_a_sample_is_always_the_same_and_the_whole_stays() -> None:
    whole = _loader(train=False)
    torch.manual_seed(1)
    first = whole.sample(10)
    torch.manual_seed(2)
    assert _same(list(first), list(whole.sample(10)))
    assert whole.num_samples == 30
    for count in (None, 30, 5000):
        assert whole.sample(count) is whole
    with pytest.raises(ConfigError, match="a batch of 6 needs more than the 5"):
        _loader().sample(5)


def test_a_fingerprint_tells_images_apart_and_not_processes() -> None:
    whole = _loader(train=False)
    assert _loader(train=False, rank=1, world_size=2).fingerprint() == whole.fingerprint()
    data = _data()
    relabelled = ImageSet(data.images, data.labels.roll(1), data.classes)
    redrawn = ImageSet(255 - data.images, data.labels, data.classes)
    others = [MemoryLoader(d, 6, train=False, normalization=IMAGENET_NORMALIZATION) for d in (relabelled, redrawn)]
    assert len({loader.fingerprint() for loader in (whole, *others, whole.sample(20))}) == 4
