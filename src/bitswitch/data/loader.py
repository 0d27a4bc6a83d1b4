"""Batches of normalised images that depend on (seed, epoch, step) alone, so that training can resume anywhere."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from bitswitch.data.augment import CropFlip
from bitswitch.data.images import ImageSet, Normalization, stratified
from bitswitch.data.order import BatchOrder, seeded_generator
from bitswitch.errors import ConfigError

Batch = tuple[Tensor, Tensor]
Own = TypeVar("Own", bound="Loader")


class Loader(ABC):
    """What training and evaluation iterate over.

    A training loader gives the same batches for the same seed, epoch and step in every run, whatever came before and
    however many processes share the work: step k of all ranks together is step k of a single process.

    Args:
        order: which samples make up which batch.
        classes: the names of the classes.
        normalization: turns uint8 images into float32.
        channels_last: give images in the channels_last memory format.
        device: where batches go; None leaves them on the CPU.
    """

    def __init__(
        self,
        order: BatchOrder,
        classes: tuple[str, ...],
        normalization: Normalization,
        channels_last: bool,
        device: torch.device | str | None,
    ) -> None:
        self.order = order
        self.classes = classes
        self.normalization = normalization
        self.channels_last = channels_last
        self.device = None if device is None else torch.device(device)

    @property
    def num_samples(self) -> int:
        """Samples in the data set, over all processes."""
        return self.order.num_samples

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return self.order.num_steps

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()

    def epoch(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """Iterate over one epoch.

        Args:
            epoch: its number; evaluation loaders give the same batches in all of them.
            start_step: the first step to give; the steps before cost nothing.

        Returns:
            Iterator of (images float32 (n, C, H, W), labels int64 (n,)), with n the batch size divided by the number
            of processes. When several processes evaluate, some may get one batch less than others, so a model that
            communicates in its forward pass (DDP) has to be unwrapped for it.

        Raises:
            ConfigError: there is no such epoch or step, or an image cannot be read.
        """
        parts = [part for part in self.order.batches(epoch, start_step) if len(part)]
        return (self._finish(images, labels) for images, labels in self._raw_batches(epoch, parts))

    def split(self: Own, fraction: float, seed: int = 0) -> tuple[Own, Own]:
        """Split off a part in which the classes are as frequent as in the whole.

        Args:
            fraction: share of every class that goes to the second loader, rounded to whole samples.
            seed: chooses the samples; the same seed gives the same split.

        Returns:
            (the rest, the part split off), which give their samples in the order of this loader.

        Raises:
            ConfigError: `fraction` is not between 0 and 1, or one of the parts would be empty.
        """
        chosen = stratified(self.labels, fraction, seed)
        return self._part(~chosen), self._part(chosen)

    def sample(self: Own, count: int | None) -> Own:
        """Return a loader of so many samples, drawn from all alike and always the same ones; of all of them for None.

        Raises:
            ConfigError: they are fewer than a training batch.
        """
        if count is None or count >= self.num_samples:
            return self
        # Not the first ones: files of image sets are often sorted by class, and the first would be of a single one.
        chosen = torch.zeros(self.num_samples, dtype=torch.bool)
        chosen[torch.randperm(self.num_samples, generator=seeded_generator(count))[:count]] = True
        return self._part(chosen)

    def fingerprint(self) -> str:
        """Return a hash of all labels and of a few images, the same in every process."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        few = torch.linspace(0, self.num_samples - 1, 8).long().unique()
        for images, _ in self._raw_batches(0, [few]):
            digest.update(images.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _part(self: Own, chosen: Tensor) -> Own:
        part = copy.copy(self)
        part.order = dataclasses.replace(self.order, num_samples=int(chosen.sum()))
        part._keep(chosen.nonzero()[:, 0])
        return part

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """The classes of all samples: int64 (N,)."""

    @abstractmethod
    def _keep(self, indices: Tensor) -> None:
        """Keep only the samples at these indices, in this object and not in those it was copied from."""

    @abstractmethod
    def _raw_batches(self, epoch: int, parts: list[Tensor]) -> Iterator[Batch]:
        """Yield augmented uint8 images and labels for each tensor of sample indices."""

    def _finish(self, images: Tensor, labels: Tensor) -> Batch:
        if self.device is not None:
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return self.normalization(images.contiguous(memory_format=memory_format)), labels


class MemoryLoader(Loader):
    """Batches of an `ImageSet`.

    Args:
        data: the images.
        batch_size: samples a batch over all processes together.
        train: shuffle, augment and drop an incomplete last batch; or give everything in order.
        normalization: its number of channels must be that of the images.
        augmentation: for training; None for none.
        seed: of the shuffling and the augmentation.
        rank: this process.
        world_size: number of processes.
        channels_last: give images in the channels_last memory format.
        device: where batches go; None leaves them on the CPU.

    Raises:
        ConfigError: the sizes do not fit together.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        train: bool,
        normalization: Normalization,
        augmentation: CropFlip | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        order = BatchOrder(len(data), batch_size, train, seed, rank, world_size)
        super().__init__(order, data.classes, normalization, channels_last, device)
        if len(normalization.mean) != data.images.shape[1]:
            raise ConfigError(
                f"the normalization has {len(normalization.mean)} channels, the images {data.images.shape[1]}"
            )
        self.data = data
        self.augmentation = augmentation if train else None

    @property
    def labels(self) -> Tensor:
        """The classes of all samples: int64 (N,)."""
        return self.data.labels

    def _keep(self, indices: Tensor) -> None:
        self.data = self.data.subset(indices)

    def _raw_batches(self, epoch: int, parts: list[Tensor]) -> Iterator[Batch]:
        parameters = None
        if self.augmentation is not None:
            # Drawn for all samples at once: a sample's augmentation then depends on nothing but its index.
            generator = seeded_generator(self.order.seed, epoch, 1)
            parameters = self.augmentation.draw(len(self.data), generator)
        for part in parts:
            images = self.data.images[part]
            if self.augmentation is not None and parameters is not None:
                images = self.augmentation.apply(images, parameters[part])
            yield images, self.data.labels[part]
