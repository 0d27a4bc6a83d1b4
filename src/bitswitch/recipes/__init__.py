"""Recipes: named, frozen configurations of a complete job, and the job itself."""

from bitswitch.recipes.catalogue import DESCRIPTIONS, RECIPES, get_recipe
from bitswitch.recipes.config import (
    DataConfig,
    JointConfig,
    ModelConfig,
    PrepareConfig,
    Recipe,
    RunConfig,
    StartConfig,
)

__all__ = [
    "DESCRIPTIONS",
    "RECIPES",
    "DataConfig",
    "JointConfig",
    "ModelConfig",
    "PrepareConfig",
    "Recipe",
    "RunConfig",
    "StartConfig",
    "get_recipe",
]
