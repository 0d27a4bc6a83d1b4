"""Models of timm by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bitswitch.errors import ConfigError
from bitswitch.integrations._lookup import check_name, check_options, download_failed, import_optional

_REFUSED = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"}
)


def list_models() -> list[str]:
    """Return the names of timm's models, without the tags of their weights.

    Raises:
        ConfigError: timm is not installed.
    """
    return import_optional("timm", "a timm model").list_models()


def build(name: str, options: Mapping[str, Any] | None = None, *, pretrained: bool = False) -> nn.Module:
    """Build a timm model.

    Args:
        name: as in `list_models`, optionally with the tag of its weights ("resnet18.a1_in1k"). Hub names and local
            folders are refused: a stored architecture must not be able to fetch or open anything.
        options: arguments of its constructor, for example num_classes.
        pretrained: download (or take from the Hub's cache) the weights of that tag. A head for another number of
            classes starts from random weights.

    Raises:
        ConfigError: timm is missing, it does not know the name or an option, or the weights cannot be fetched.
    """
    options = dict(options or {})
    timm = import_optional("timm", "a timm model")
    check_name(name.partition(".")[0], list_models(), "timm")
    check_options(options, _REFUSED, f"timm/{name}")
    try:
        model = timm.create_model(name, pretrained=False, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"timm/{name} cannot be built with {options}: {error}") from error
    if not pretrained:
        return model
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:
        raise download_failed(f"timm/{name}", error) from error
