"""The data that a recipe names, as loaders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bitswitch.data import (
    CIFAR_AUGMENTATION,
    CIFAR_NORMALIZATION,
    DIGITS_AUGMENTATION,
    DIGITS_NORMALIZATION,
    CropFlip,
    FolderLoader,
    ImageSet,
    Loader,
    MemoryLoader,
    Normalization,
    load_cifar10,
    load_digits,
)
from bitswitch.data.order import seeded_generator
from bitswitch.errors import ConfigError
from bitswitch.recipes.config import DATA_VARIABLE, DataConfig, RunConfig
from bitswitch.training import distributed


@dataclass(frozen=True)
class _Images:
    train: ImageSet
    validation: ImageSet | None
    held_out: ImageSet
    normalization: Normalization
    augmentation: CropFlip


class RecipeData:
    """Makes the loaders of a recipe; images in memory are read once.

    Args:
        config: which images.
        run: seed, memory format and batch size of evaluation.
        device: where batches go.

    Raises:
        ConfigError: the images are not there or cannot be read.
    """

    def __init__(self, config: DataConfig, run: RunConfig, device: torch.device) -> None:
        self.config = config
        self.run = run
        self.device = device
        self._images = None if config.kind == "folder" else _read(config)

    def training(self, batch_size: int, *, seed: int) -> Loader:
        """Return shuffled, augmented batches of the training images, this process's part of each."""
        return self._loader("train", batch_size, augment=self.config.augment, seed=seed, shared=True)

    def calibration(self, batch_size: int, *, shared: bool = False, augment: bool = False) -> Loader:
        """Return shuffled batches of the training images.

        Args:
            batch_size: images a batch.
            shared: give this process its part of each batch; otherwise every process gets the same ones.
            augment: as in training, if the recipe does so there.
        """
        augment = augment and self.config.augment
        return self._loader("train", batch_size, augment=augment, seed=self.run.seed, shared=shared)

    def validation(self) -> Loader:
        """Return the images that were kept out of training in order, this process's part of each batch.

        Raises:
            ConfigError: the recipe keeps none.
        """
        if self._images is None or self._images.validation is None:
            raise ConfigError("the recipe keeps no training images for validation; give --data.validation")
        return self._loader("validation", self.run.eval_batch_size, augment=False, seed=0, shared=True)

    def held_out(self) -> Loader:
        """Return all held-out images in order, this process's part of each batch."""
        return self._loader("held_out", self.run.eval_batch_size, augment=False, seed=0, shared=True)

    def _loader(
        self,
        part: Literal["train", "validation", "held_out"],
        batch_size: int,
        *,
        augment: bool,
        seed: int,
        shared: bool,
    ) -> Loader:
        rank, world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
        train = part == "train"
        if self._images is None:
            return FolderLoader(
                data_folder(self.config) / ("train" if train else "val"),
                batch_size,
                train=train,
                image_size=self.config.image_size,
                crop_area=0.08 if augment else 1.0,
                num_workers=self.config.num_workers,
                seed=seed,
                rank=rank,
                world_size=world_size,
                channels_last=self.run.channels_last,
                device=self.device,
            )
        return MemoryLoader(
            getattr(self._images, part),
            batch_size,
            train=train,
            normalization=self._images.normalization,
            augmentation=self._images.augmentation if augment else None,
            seed=seed,
            rank=rank,
            world_size=world_size,
            channels_last=self.run.channels_last,
            device=self.device,
        )


def data_folder(config: DataConfig) -> Path:
    """Return the folder of a recipe's images.

    Raises:
        ConfigError: neither the option nor the environment variable says where they are.
    """
    folder = config.folder or os.environ.get(DATA_VARIABLE)
    if not folder:
        raise ConfigError(f"where are the images? Give --data.folder, or set the environment variable {DATA_VARIABLE}")
    return Path(folder)


def _read(config: DataConfig) -> _Images:
    if config.kind == "digits":
        train, held_out = load_digits(config.split_seed)
        normalization, augmentation = DIGITS_NORMALIZATION, DIGITS_AUGMENTATION
    else:
        folder = data_folder(config)
        train = load_cifar10(folder, "train", download=config.download)
        held_out = load_cifar10(folder, "test", download=config.download)
        normalization, augmentation = CIFAR_NORMALIZATION, CIFAR_AUGMENTATION
    validation = None
    if config.validation is not None:
        if config.validation >= len(train):
            raise ConfigError(f"data.validation={config.validation} leaves none of {len(train)} images for training")
        train, validation = train.split(config.validation / len(train), config.split_seed)
    train, held_out = sample(train, config.max_train), sample(held_out, config.max_eval)
    return _Images(train, validation, held_out, normalization, augmentation)


def sample(images: ImageSet, count: int | None) -> ImageSet:
    """Return so many images, drawn from all alike and always the same ones; all of them for None."""
    if count is None or count >= len(images):
        return images
    # Not the first ones: files of image sets are often sorted by class, and the first would be of a single one.
    chosen = torch.randperm(len(images), generator=seeded_generator(count))[:count]
    return images.subset(chosen.sort().values)
