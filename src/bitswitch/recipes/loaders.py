"""The data that a recipe names, as loaders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

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
from bitswitch.errors import BitswitchError, ConfigError
from bitswitch.layers.modes import in_mode
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
        ConfigError: the images are not there or cannot be read, or a folder has other classes for training than for
            evaluation.
    """

    def __init__(self, config: DataConfig, run: RunConfig, device: torch.device) -> None:
        self.config = config
        self.run = run
        self.device = device
        self._images = None if config.kind == "folder" else _read(config)
        self.classes = _folder_classes(data_folder(config)) if self._images is None else self._images.train.classes

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
        raise ConfigError(f"where are the images? Give --data.folder, or set the environment variable {DATA_VARIABLE}")
    return Path(folder)


def _folder_classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes, which training and evaluation number alike only if both have all of them."""
    parts = [folder / part for part in ("train", "val") if (folder / part).is_dir()]
    if not parts:
        raise ConfigError(f"the image folder {folder} has neither train/ nor val/")
    names = [{entry.name for entry in part.iterdir() if entry.is_dir()} for part in parts]
    for name in sorted(names[0] ^ names[-1])[:1]:
        where, other = parts if name in names[0] else reversed(parts)
        raise ConfigError(f"{where} has a class {name!r} that {other} has not")
    return tuple(sorted(names[0]))


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
        total = len(train)
        if config.validation >= total:
            raise ConfigError(f"data.validation={config.validation} leaves none of {total} images for training")
        train, validation = train.split(config.validation / total, config.split_seed)
        for images, purpose in ((train, "training"), (validation, "validation")):
            if not len(images):
                raise ConfigError(f"data.validation={config.validation} of {total} images is no image for {purpose}")
    return _Images(train, validation, held_out, normalization, augmentation)
