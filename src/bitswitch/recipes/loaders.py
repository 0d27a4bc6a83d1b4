"""The data that a recipe names, as loaders."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from bitswitch.data import (
    CIFAR10_CLASSES,
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
from bitswitch.data.sources import DIGITS_CLASSES
from bitswitch.errors import BitswitchError, ConfigError
from bitswitch.layers.modes import in_mode
from bitswitch.recipes.config import DATA_VARIABLE, DataConfig, RunConfig
from bitswitch.training import distributed


class _Images:
    """Images in memory, read when they are first asked for.

    Args:
        config: of digits or CIFAR-10.

    Attributes:
        normalization: of the images.
        augmentation: of training images.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.normalization: Normalization = DIGITS_NORMALIZATION
        self.augmentation: CropFlip = DIGITS_AUGMENTATION
        if config.kind == "cifar10":
            self.normalization, self.augmentation = CIFAR_NORMALIZATION, CIFAR_AUGMENTATION
            self._folder = data_folder(config)

    @cached_property
    def held_out(self) -> ImageSet:
        return self._read("test")

    @property
    def train(self) -> ImageSet:
        return self._training[0]

    @property
    def validation(self) -> ImageSet | None:
        return self._training[1]

    @cached_property
    def _training(self) -> tuple[ImageSet, ImageSet | None]:
        images, count = self._read("train"), self._config.validation
        if count is None:
            return images, None
        if count >= len(images):
            raise ConfigError(f"data.validation={count} leaves none of {len(images)} images for training")
        train, validation = images.split(count / len(images), self._config.split_seed)
        for part, purpose in ((train, "training"), (validation, "validation")):
            if not len(part):
                raise ConfigError(f"data.validation={count} of {len(images)} images is no image for {purpose}")
        return train, validation

    def _read(self, split: Literal["train", "test"]) -> ImageSet:
        if self._config.kind == "digits":
            return load_digits(self._config.split_seed)[split == "test"]
        return load_cifar10(self._folder, split, download=self._config.download)


class RecipeData:
    """Makes the loaders of a recipe; images in memory are read once, when a loader needs them.

    Args:
        config: which images.
        run: seed, memory format and batch size of evaluation.
        device: where batches go.

    Attributes:
        classes: their names.

    Raises:
        ConfigError: nothing says where the images are, or a folder has other classes for training than for evaluation.
            Loaders raise it if the images cannot be read.
    """

    def __init__(self, config: DataConfig, run: RunConfig, device: torch.device) -> None:
        self.config = config
        self.run = run
        self.device = device
        self._images = None if config.kind == "folder" else _Images(config)
        self.classes = _classes(config)

    def check_outputs(self, network: nn.Module) -> None:
        """Run a network on the `device` on a black image, to see that it has an output for every class.

        Raises:
            ConfigError: it has fewer or more, or cannot take images of this shape.
        """
        shape = input_shape(self.config)
        try:
            with in_mode(network, training=False), torch.no_grad():
                outputs = network(torch.zeros(1, *shape, device=self.device)).shape[-1]
        except (RuntimeError, BitswitchError) as error:
            raise ConfigError(
                f"the network cannot take the images of data.kind={self.config.kind}, which are "
                f"{'×'.join(map(str, shape))}: {error}"
            ) from error
        if outputs != len(self.classes):
            raise ConfigError(
                f"the network has {outputs} outputs, but the images of data.kind={self.config.kind} have "
                f"{len(self.classes)} classes; model.num_classes sets the outputs of a new network"
            )

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
            raise ConfigError("the recipe keeps no training images for validation; give data.validation")
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
            loader = FolderLoader(
                data_folder(self.config) / ("train" if train else "val"),
                batch_size,
                train=train,
                augment=augment,
                image_size=self.config.image_size,
                num_workers=self.config.num_workers,
                seed=seed,
                rank=rank,
                world_size=world_size,
                channels_last=self.run.channels_last,
                device=self.device,
            )
        else:
            loader = MemoryLoader(
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
        return loader.sample({"train": self.config.max_train, "held_out": self.config.max_eval}.get(part))


def input_shape(data: DataConfig) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images, without reading any."""
    return {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}.get(data.kind, (3, data.image_size, data.image_size))


def data_folder(config: DataConfig) -> Path:
    """Return the folder of a recipe's images.

    Raises:
        ConfigError: neither the option nor the environment variable says where they are.
    """
    folder = config.folder or os.environ.get(DATA_VARIABLE)
    if not folder:
        raise ConfigError(
            f"where are the images? Say it with data.folder, or with the environment variable {DATA_VARIABLE}"
        )
    return Path(folder)


def _classes(config: DataConfig) -> tuple[str, ...]:
    """Return the names of the classes; of a folder's, whose two parts number them alike only if both have all."""
    if config.kind != "folder":
        return DIGITS_CLASSES if config.kind == "digits" else CIFAR10_CLASSES
    folder = data_folder(config)
    parts = [folder / part for part in ("train", "val") if (folder / part).is_dir()]
    if not parts:
        raise ConfigError(f"the image folder {folder} has neither train/ nor val/")
    names = [{entry.name for entry in part.iterdir() if entry.is_dir()} for part in parts]
    for name in sorted(names[0] ^ names[-1])[:1]:
        where, other = parts if name in names[0] else reversed(parts)
        raise ConfigError(f"{where} has a class {name!r} that {other} has not")
    return tuple(sorted(names[0]))
