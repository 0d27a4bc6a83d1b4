"""The recipes by name, with the hyper-parameters of section 5 of the paper where it gives them."""

from __future__ import annotations

from difflib import get_close_matches

from bitswitch.errors import ConfigError
from bitswitch.recipes.config import (
    DataConfig,
    JointConfig,
    ModelConfig,
    PrepareConfig,
    Recipe,
    RunConfig,
    StartConfig,
)

DIGITS = Recipe(
    name="digits",
    model=ModelConfig("digits-cnn"),
    data=DataConfig("digits"),
    start=StartConfig(epochs=12, lr=3e-3, batch_size=64),
    prepare=PrepareConfig(calibration_batches=4),
    joint=JointConfig(epochs=20, batch_size=64, lr=2e-3),
    run=RunConfig(log_every=11),
)

# 200 epochs with batches of 128, Adam, λ = 5e-4 with cosine decay, weight decay 5e-5. The float network is trained as
# in He et al. 2015, unless start.weights names a file.
CIFAR10_RESNET20 = Recipe(
    name="cifar10-resnet20",
    model=ModelConfig("resnet20-cifar"),
    data=DataConfig("cifar10"),
    start=StartConfig(epochs=200, optimizer="sgd", lr=0.1, weight_decay=1e-4, batch_size=128),
    prepare=PrepareConfig(),
    joint=JointConfig(epochs=200, batch_size=128),
    run=RunConfig(channels_last=True),
)


def _imagenet(name: str, model: str) -> Recipe:
    """Return the paper's setup for ImageNet-1K: 90 epochs with batches of 256, from pretrained weights."""
    return Recipe(
        name=name,
        model=ModelConfig(model),
        data=DataConfig("folder"),
        # The first weights of torchvision are those that the paper starts from; the newer ones score higher.
        start=StartConfig(pretrained=True, pretrained_tag="IMAGENET1K_V1", batch_size=256),
        prepare=PrepareConfig(),
        joint=JointConfig(),
        run=RunConfig(channels_last=True, eval_batch_size=256, log_every=100),
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        DIGITS,
        CIFAR10_RESNET20,
        _imagenet("imagenet-resnet18", "torchvision/resnet18"),
        _imagenet("imagenet-resnet50", "torchvision/resnet50"),
        _imagenet("imagenet-mobilenetv2", "torchvision/mobilenet_v2"),
    )
}

DESCRIPTIONS: dict[str, str] = {
    "digits": "The 8×8 digits of scikit-learn: the complete job in half a minute on two cores, nothing to download.",
    "cifar10-resnet20": "ResNet-20 on CIFAR-10, 200 epochs.",
    "imagenet-resnet18": "ResNet-18 on ImageNet-1K, 90 epochs from pretrained weights.",
    "imagenet-resnet50": "ResNet-50 on ImageNet-1K, 90 epochs from pretrained weights.",
    "imagenet-mobilenetv2": "MobileNetV2 on ImageNet-1K, 90 epochs from pretrained weights.",
}


def get_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(RECIPES)}"
        raise ConfigError(f"no recipe is called {name!r}; {hint}")
    return RECIPES[name]
