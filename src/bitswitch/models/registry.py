"""Models by name, and the description of a model that a checkpoint stores."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch import nn

from bitswitch.errors import ConfigError
from bitswitch.integrations import timm as timm_models
from bitswitch.integrations import torchvision as torchvision_models
from bitswitch.integrations._lookup import check_name
from bitswitch.models.digits import DigitsCNN
from bitswitch.models.resnet_cifar import resnet20_cifar, resnet32_cifar, resnet44_cifar, resnet56_cifar
from bitswitch.models.weights import load_state, load_weights

_OWN: dict[str, Callable[..., nn.Module]] = {
    "digits-cnn": DigitsCNN,
    "resnet20-cifar": resnet20_cifar,
    "resnet32-cifar": resnet32_cifar,
    "resnet44-cifar": resnet44_cifar,
    "resnet56-cifar": resnet56_cifar,
}
_SOURCES = ("bitswitch", "torchvision", "timm")
# A description may come from somebody else's checkpoint: no layer of a real network has more rows than this.
_MAX_INTEGER = 1 << 20


@dataclass(frozen=True)
class Architecture:
    """What it takes to build a model again: JSON-able, and unable to read files or the network.

    Attributes:
        source: "bitswitch", "torchvision" or "timm".
        name: the model's name there.
        kwargs: arguments of its constructor: numbers, booleans, strings, None, or lists of them.

    >>> Architecture.of("torchvision/resnet18", num_classes=10).to_json()
    {'source': 'torchvision', 'name': 'resnet18', 'kwargs': {'num_classes': 10}}
    """

    source: str
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source not in _SOURCES:
            raise ConfigError(f"unknown model source {self.source!r}; there are {', '.join(_SOURCES)}")
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"the name of a model must be a string; got {self.name!r}")
        if not isinstance(self.kwargs, Mapping) or not all(isinstance(key, str) for key in self.kwargs):
            raise ConfigError(f"the options of {self.name} must be a mapping with string keys; got {self.kwargs!r}")
        for key, value in self.kwargs.items():
            _check_option(self.name, key, value)

    @classmethod
    def of(cls, name: str, **kwargs: Any) -> Architecture:
        """Describe the model that a name such as "resnet20-cifar" or "timm/resnet18" stands for.

        Args:
            name: "<own model>", "torchvision/<name>" or "timm/<name>".
            **kwargs: arguments of its constructor.

        Raises:
            ConfigError: the source is unknown, or an argument cannot be stored as JSON.
        """
        source, slash, rest = name.partition("/")
        return cls(source, rest, kwargs) if slash else cls("bitswitch", name, kwargs)

    @property
    def full_name(self) -> str:
        """The name that `of` understands."""
        return self.name if self.source == "bitswitch" else f"{self.source}/{self.name}"

    def build(self) -> nn.Module:
        """Build the model with random weights.

        Raises:
            ConfigError: the package is not installed, or the name or an option is unknown.
        """
        if self.source == "torchvision":
            return torchvision_models.build(self.name, self.kwargs)
        if self.source == "timm":
            return timm_models.build(self.name, self.kwargs)
        check_name(self.name, _OWN, "bitswitch")
        for key, value in self.kwargs.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{self.name} cannot be built with {key}={value!r}; it takes positive integers")
        builder = _OWN[self.name]
        try:
            inspect.signature(builder).bind(**self.kwargs)
            return builder(**self.kwargs)
        except (TypeError, RuntimeError) as error:
            raise ConfigError(f"{self.name} cannot be built with {dict(self.kwargs)}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Return {"source", "name", "kwargs"}."""
        return {"source": self.source, "name": self.name, "kwargs": dict(self.kwargs)}

    @classmethod
    def from_json(cls, value: object) -> Architecture:
        """Rebuild a description from `to_json`.

        Raises:
            ConfigError: `value` is not of that form.
        """
        if not isinstance(value, Mapping) or set(value) != {"source", "name", "kwargs"}:
            raise ConfigError(f"an architecture has the keys 'source', 'name' and 'kwargs'; got {value!r:.200}")
        return cls(value["source"], value["name"], value["kwargs"])


def list_models() -> list[str]:
    """Return the names of the models that bitswitch has itself."""
    return sorted(_OWN)


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool | str = False,
    weights: str | PathLike[str] | None = None,
    new_head: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a float model by name.

    Args:
        name: "<own model>" (see `list_models`), "torchvision/<name>" or "timm/<name>".
        num_classes: outputs; None for the model's own default.
        pretrained: start from the collection's own weights, which may download them: True for the default ones, or the
            name of some of torchvision's, such as "IMAGENET1K_V1" (timm has such tags in the model's name). If
            num_classes differs from theirs, the head starts from random weights.
        weights: start from a local file instead, see `load_weights`.
        new_head: with `weights`, accept a file whose head is for other classes.
        **kwargs: further arguments of the model's constructor.

    Raises:
        ConfigError: the package is not installed, the name or an argument is unknown, or the weights cannot be had.
    """
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    architecture = Architecture.of(name, **kwargs)
    if pretrained and weights is not None:
        raise ConfigError(f"{name}: give either pretrained=True or weights={str(weights)!r}, not both")
    if pretrained and architecture.source == "timm":
        if isinstance(pretrained, str):
            raise ConfigError(f"{name}: timm has its tag in the name; use pretrained=True and timm/<name>.{pretrained}")
        return timm_models.build(architecture.name, architecture.kwargs, pretrained=True)
    if pretrained and architecture.source == "bitswitch":
        raise ConfigError(f"bitswitch has no pretrained weights for {name}; give a local file as weights=")
    model = architecture.build()
    if pretrained:
        tag = "DEFAULT" if pretrained is True else pretrained
        state = torchvision_models.pretrained_state(architecture.name, tag)
        load_state(model, state, origin=f"the pretrained state of {name}", new_head=True)
    if weights is not None:
        load_weights(model, weights, new_head=new_head)
    return model


def _check_option(name: str, key: str, value: object) -> None:
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if item is not None and not isinstance(item, (bool, int, float, str)):
            raise ConfigError(f"{name}: the option {key}={item!r:.80} of type {type(item).__name__} cannot be stored")
        if isinstance(item, int) and abs(item) > _MAX_INTEGER:
            raise ConfigError(f"{name}: the option {key}={item} is beyond {_MAX_INTEGER}")
