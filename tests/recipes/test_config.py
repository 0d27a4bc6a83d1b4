"""Recipes as data: JSON and back, and values that are refused."""

from __future__ import annotations

import json
import math

import pytest

from bitswitch.errors import ConfigError
from bitswitch.recipes import DESCRIPTIONS, RECIPES, Recipe, get_recipe
from bitswitch.recipes.convert import from_json, to_json


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    recipe = get_recipe(name).check()
    assert recipe.name == name
    assert name in DESCRIPTIONS
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe


def test_papers_hyper_parameters() -> None:
    for name in ("imagenet-resnet18", "imagenet-resnet50", "imagenet-mobilenetv2"):
        recipe = get_recipe(name)
        joint = recipe.joint
        assert (joint.epochs, joint.batch_size, joint.lr, joint.weight_decay) == (90, 256, 5e-4, 5e-5)
        assert (joint.schedule, joint.algorithm, joint.alrs) == ("cosine", "per-width", "factor")
        assert recipe.start.pretrained
    cifar = get_recipe("cifar10-resnet20").joint
    assert (cifar.epochs, cifar.batch_size, cifar.lr, cifar.weight_decay) == (200, 128, 5e-4, 5e-5)


def test_unknown_recipe_suggests() -> None:
    with pytest.raises(ConfigError, match="did you mean digits"):
        get_recipe("digit")


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("joint", "lr", "fast", "joint.lr: expected float, found 'fast'"),
        ("joint", "epochs", 1.5, "joint.epochs: expected int"),
        ("joint", "epochs", True, "joint.epochs: expected int"),
        ("joint", "alrs", "on", "joint.alrs must be one of 'factor', 'printed', 'off'"),
        ("joint", "speed", 3, "joint.speed is not a field"),
        ("prepare", "bits", [8, "4"], "prepare.bits[1]: expected int"),
        ("prepare", "first_last", 8.0, "prepare.first_last must be one of"),
        ("data", "max_train", "all", "data.max_train: expected int | None"),
        ("model", "options", {"width": []}, "model.options.width"),
        ("model", "name", None, "model.name: expected str"),
    ],
)
def test_malformed_json_names_the_field(section: str, field: str, value: object, message: str) -> None:
    content = to_json(get_recipe("digits"))
    content[section][field] = value
    with pytest.raises(ConfigError) as error:
        from_json(Recipe, content)
    assert message in str(error.value)


def test_missing_field_is_named() -> None:
    content = to_json(get_recipe("digits"))
    del content["model"]["name"]
    with pytest.raises(ConfigError, match="model.name is missing"):
        from_json(Recipe, content)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("joint", {"lr": -1.0}, "joint.lr must be at least 0"),
        ("joint", {"lr": math.nan}, "joint.lr must be at least 0"),
        ("joint", {"temperature": 0.0}, "joint.temperature"),
        ("run", {"log_every": 0}, "run.log_every must be at least 1"),
        ("prepare", {"bits": (8, 9)}, "prepare.bits"),
        ("start", {"pretrained": True, "weights": "w.safetensors"}, "exclude each other"),
        ("model", {"options": {"num_classes": 5}}, "model.options cannot have 'num_classes'; use model.num-classes"),
        ("joint", {"algorithm": "accumulate"}, "joint.alrs must be off"),
        ("joint", {"algorithm": "accumulate", "alrs": "off", "moments": "separate"}, "joint.moments shared"),
        ("joint", {"label_smoothing": 1.5}, "joint.label_smoothing must be at most 1"),
        ("start", {"label_smoothing": 1.5}, "start.label_smoothing must be at most 1"),
        ("prepare", {"granularity": "group"}, "prepare.group_size"),
        ("prepare", {"group_size": 4}, "prepare.group_size"),
    ],
)
def test_values_out_of_range_are_refused(section: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_recipe("digits").replace(**{section: values}).check()
