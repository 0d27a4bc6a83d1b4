"""Checkpoints that are opened from their folder alone, without any code of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bitswitch.checkpoint import CheckpointInfo, load
from bitswitch.checkpoint.config import CONFIG_NAME as CHECKPOINT_CONFIG
from bitswitch.errors import ConfigError
from bitswitch.models import Architecture
from bitswitch.precision import Precision
from bitswitch.recipes.config import ModelConfig, Recipe
from bitswitch.recipes.convert import from_json
from bitswitch.training.run import CONFIG_NAME, read_json

RECIPE_NAME = "recipe.json"
CHECKPOINT_FOLDER = "checkpoint"


def architecture_of(model: ModelConfig) -> Architecture:
    """Return the description of a recipe's network that a checkpoint stores."""
    options = dict(model.options) if model.num_classes is None else {**model.options, "num_classes": model.num_classes}
    return Architecture.of(model.name, **options)


def config_of_run(path: Path) -> dict[str, Any] | None:
    """Return what config.json of a run folder holds, or None if the folder is none.

    Raises:
        CheckpointError: it is not JSON.
    """
    config = read_json(path / CONFIG_NAME)
    return config if isinstance(config, dict) and "recipe" in config else None


def recipe_of_run(path: Path) -> Recipe | None:
    """Return the recipe of a run folder, or None if the folder is none.

    Raises:
        ConfigError, CheckpointError: its configuration is damaged.
    """
    config = config_of_run(path)
    return None if config is None else from_json(Recipe, config["recipe"], "recipe")


def checkpoint_folder(path: Path) -> Path:
    """Return the checkpoint folder of a run folder; any other folder is returned as it is.

    Raises:
        ConfigError: the run is not finished.
        CheckpointError: its configuration is damaged.
    """
    if config_of_run(path) is None:
        return path
    folder = path / CHECKPOINT_FOLDER
    if not (folder / CHECKPOINT_CONFIG).exists():
        raise ConfigError(f"the run in {path} is not finished: it has no checkpoint yet")
    return folder


def open_checkpoint(info: CheckpointInfo, precision: int | Precision | None = None) -> nn.Module:
    """Build the network that a checkpoint describes and load it.

    Args:
        info: of the checkpoint.
        precision: to open at; by default the highest width whose files are there.

    Raises:
        ConfigError: the checkpoint does not say which network it holds.
        CheckpointError: it cannot be read.
        MissingPlanesError: files that the precision needs are not there.
    """
    if info.config.architecture is None:
        raise ConfigError(
            f"{info.folder} does not say which network it holds; save it with architecture=, "
            "or load it in Python with bitswitch.load(folder, into=network)"
        )
    network = Architecture.from_json(info.config.architecture).build()
    if precision is None and info.bits_available:
        precision = info.bits_available[0]
    return load(info.folder, into=network, bits=precision)


def stored_recipe(folder: Path) -> Recipe | None:
    """Return the recipe that a checkpoint was trained with, or None if it does not say.

    Raises:
        ConfigError, CheckpointError: the file is damaged.
    """
    content: Any = read_json(folder / RECIPE_NAME)
    return None if content is None else from_json(Recipe, content, RECIPE_NAME)
