"""What a job left behind, for commands that go on from it: its float network, its SuperNet, its images."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bitswitch._files import read_state
from bitswitch._prepare import unfreeze
from bitswitch.checkpoint import CheckpointInfo, read_info
from bitswitch.checkpoint.config import CONFIG_NAME as CHECKPOINT_CONFIG
from bitswitch.data import Loader
from bitswitch.errors import ConfigError
from bitswitch.recipes.config import DataConfig, Recipe, RunConfig
from bitswitch.recipes.loaders import RecipeData
from bitswitch.recipes.start import FLOAT_STATE
from bitswitch.recipes.stored import (
    CHECKPOINT_FOLDER,
    architecture_of,
    checkpoint_folder,
    open_checkpoint,
    recipe_of_run,
    stored_recipe,
)
from bitswitch.training.run_state import load_model_state


@dataclass(frozen=True)
class Trained:
    """A run folder, or a checkpoint folder.

    Attributes:
        path: the folder given.
        checkpoint: the folder of its checkpoint; an unfinished run has none yet.
        recipe: what it was trained by, or None for a checkpoint that does not say.
    """

    path: Path
    checkpoint: Path
    recipe: Recipe | None

    @classmethod
    def open(cls, path: Path) -> Trained:
        """Look at a folder.

        Raises:
            ConfigError: it is neither a run folder nor a checkpoint folder.
            CheckpointError: its files are damaged.
        """
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder; a run folder or a checkpoint folder is needed")
        recipe = recipe_of_run(path)
        if recipe is not None:
            return cls(path, path / CHECKPOINT_FOLDER, recipe)
        trained = cls(path, path, stored_recipe(path))
        _ = trained.info  # an error now rather than later
        return trained

    @cached_property
    def info(self) -> CheckpointInfo:
        """What is known of the checkpoint.

        Raises:
            ConfigError: the run is not finished.
            CheckpointError: a file is damaged or missing.
        """
        return read_info(checkpoint_folder(self.path))

    @property
    def has_float_weights(self) -> bool:
        """Whether the float network that the training began with is there."""
        return self.recipe is not None and (self.path / f"{FLOAT_STATE}.json").exists()

    def float_network(self) -> nn.Module:
        """Return a network to differentiate: the float network of a run; of a checkpoint, the highest width's weights.

        Raises:
            ConfigError: the checkpoint does not say which network it holds.
            CheckpointError: a file is damaged.
        """
        if self.has_float_weights:
            assert self.recipe is not None
            network = architecture_of(self.recipe.model).build()
            load_model_state(network, read_state(self.path, FLOAT_STATE)[0])
            return network
        network = self.supernet()
        unfreeze(network)
        return network

    def supernet(self) -> nn.Module:
        """Return the stored network, which runs at any precision.

        Raises:
            ConfigError: the run is not finished, or the checkpoint does not say which network it holds.
            CheckpointError: a file is damaged or missing.
        """
        return open_checkpoint(self.info)

    def identity(self) -> str:
        """Return a hash that tells this checkpoint from any other."""
        return hashlib.sha256((self.checkpoint / CHECKPOINT_CONFIG).read_bytes()).hexdigest()


@dataclass(frozen=True)
class FirstBatches:
    """The first batches of a loader, each time it is iterated over."""

    loader: Loader
    count: int

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.count)


@dataclass(frozen=True)
class ImageParts:
    """Images for choosing SubNets, and others that tell how good the choice is.

    Attributes:
        search: for choosing.
        final: for the accuracy that is reported.
        names: what each is, for people.
    """

    search: Loader
    final: Loader
    names: tuple[str, str]


def images_of(
    recipe: Recipe | None, path: Path, kind: Literal["digits", "cifar10", "folder"] | None, folder: str | None
) -> DataConfig:
    """Return which images to use: those of the recipe, or others.

    Args:
        recipe: what the network was trained by, if that is known.
        path: of the network, for messages.
        kind: other images than those of the recipe.
        folder: where they are, if not where the recipe says.

    Raises:
        ConfigError: neither says which images.
    """
    if kind is None and recipe is None:
        raise ConfigError(f"{path} does not say which images it was trained on; give --data")
    data = DataConfig(kind or "digits") if recipe is None else recipe.data
    if kind is not None and kind != data.kind:
        data = DataConfig(kind)
    return data if folder is None else dataclasses.replace(data, folder=folder)


def open_images(trained: Trained, data: DataConfig, batch_size: int, device: torch.device) -> RecipeData:
    """Return the images for a network, in the memory format of its recipe.

    Raises:
        ConfigError: they are not there.
    """
    run = RunConfig() if trained.recipe is None else trained.recipe.run
    return RecipeData(data, dataclasses.replace(run, eval_batch_size=batch_size), device)


def image_parts(data: RecipeData, search_share: float) -> ImageParts:
    """Return images for a search and images for its result.

    Images that the recipe keeps for validation serve the search, if there are any; the held-out ones tell the result.
    Without, the held-out images are split, as often of each class as in the whole.

    Args:
        data: the images.
        search_share: share of the held-out images that the search gets if no images are kept for validation.

    Raises:
        ConfigError: the share is not between 0 and 1.
    """
    if data.config.validation is not None:
        return ImageParts(data.validation(), data.held_out(), ("validation images", "held-out images"))
    final, search = data.held_out().split(search_share, data.config.split_seed)
    return ImageParts(search, final, ("a part of the held-out images", "the other held-out images"))
