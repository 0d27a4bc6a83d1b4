"""SuperNet training as a recipe asks for it: the sampler of widths, and the sensitivity that it needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from bitswitch.data.order import derive_seed
from bitswitch.layers.table import state_of
from bitswitch.mixed import HASB, Sensitivity, UniformSampling, hessian_trace
from bitswitch.recipes.config import Recipe
from bitswitch.recipes.loaders import RecipeData
from bitswitch.training import CrossEntropy, distributed

SENSITIVITY_NAME = "sensitivity.json"
# 1024 images in small batches: they give more independent probes for the same work than large ones.
_BATCH, _NUM_BATCHES = 32, 32


def make_sampler(
    recipe: Recipe, network: nn.Module, float_network: nn.Module, data: RecipeData, folder: Path
) -> HASB | None:
    """Return what draws the widths of layers in joint training, None if every width trains as it is.

    Args:
        recipe: of the job.
        network: prepared.
        float_network: that it was prepared from.
        data: images to estimate the sensitivity on.
        folder: of the run; keeps the sensitivity, so that a continued run draws what it would have drawn.

    Raises:
        ConfigError: the file of the sensitivity is missing or belongs to another network.
    """
    config = recipe.joint
    if config.sampler == "off":
        return None
    quantized = state_of(network).table.select("quantized")
    aliases = {entry.name: entry.alias_of for entry in quantized if entry.alias_of is not None}
    seed = derive_seed(recipe.run.seed, 2)
    epochs = max(1, config.epochs)
    if config.sampler == "uniform":
        return UniformSampling(total_epochs=epochs, sigma=config.sigma, aliases=aliases, seed=seed)
    stored = folder / SENSITIVITY_NAME
    # No process may look for the file while the first one writes it.
    is_there = stored.exists()
    distributed.barrier()
    if not is_there:
        found = _sensitivity(recipe, float_network, data)
        if distributed.is_main():
            found.save(stored)
        distributed.barrier()
    return HASB(
        Sensitivity.load(stored, network),
        total_epochs=epochs,
        sigma=config.sigma,
        threshold=config.threshold,
        aliases=aliases,
        seed=seed,
    )


def _sensitivity(recipe: Recipe, float_network: nn.Module, data: RecipeData) -> Sensitivity:
    if recipe.joint.sensitivity is not None:
        return Sensitivity.load(recipe.joint.sensitivity, float_network)
    # There are enough images for batches of joint training.
    batch = min(_BATCH * distributed.world_size(), recipe.joint.batch_size)
    batches: Iterable[Any] = itertools.islice(data.calibration(batch, shared=True), _NUM_BATCHES)
    return hessian_trace(float_network, CrossEntropy(), list(batches), seed=recipe.run.seed)
