"""Models of torchvision by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bitswitch.errors import ConfigError
from bitswitch.integrations._lookup import check_name, check_options, download_failed, import_optional

_REFUSED = frozenset({"weights", "weights_backbone", "pretrained", "pretrained_backbone", "progress"})


def list_models() -> list[str]:
    """Return the names of torchvision's float models: classification, detection, segmentation, video and flow.

    Raises:
        ConfigError: torchvision is not installed.
    """
    models = import_optional("torchvision", "a torchvision model").models
    # The quantized_ variants are fixed 8-bit graphs of another library part, not float models.
    return [name for name in models.list_models() if not name.startswith("quantized_")]


def build(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a torchvision model with random weights; nothing is downloaded, backbones included.

    Args:
        name: as in `list_models`.
        options: arguments of its constructor, for example num_classes.

    Raises:
        ConfigError: torchvision is missing, or it does not know the name or an option.
    """
    options = dict(options or {})
    check_name(name, list_models(), "torchvision")
    check_options(options, _REFUSED, f"torchvision/{name}")
    builder = import_optional("torchvision", "a torchvision model").models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        # Left open, these two warn that the default will change.
        options.setdefault("init_weights", True)
    try:
        return builder(weights=None, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"torchvision/{name} cannot be built with {options}: {error}") from error


def pretrained_state(name: str, tag: str = "DEFAULT") -> dict[str, Tensor]:
    """Download (or take from torch's cache) pretrained weights of a model.

    Args:
        name: as in `list_models`.
        tag: which of the model's weights, such as "IMAGENET1K_V1"; "DEFAULT" is the best that torchvision has.

    Returns:
        Its state dict.

    Raises:
        ConfigError: there are none, or they cannot be fetched; the message says how to use a local file.
    """
    check_name(name, list_models(), "torchvision")
    models = import_optional("torchvision", "a torchvision model").models
    members = models.get_model_weights(name).__members__
    if tag not in members:
        known = ", ".join(members) or "none at all"
        raise ConfigError(f"torchvision has no pretrained weights {tag!r} for {name}; it has {known}")
    weights = members[tag]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except Exception as error:
        raise download_failed(f"torchvision/{name}", error) from error
