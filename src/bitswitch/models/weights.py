"""Float weights from local files, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bitswitch.errors import ConfigError

_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a file of torch.save that holds tensors only.

    A state dict inside a dict under "state_dict" or "model" is found, and the prefix "module." of DataParallel dropped.

    Args:
        path: the file. Everything but .safetensors is read with torch.load(weights_only=True).

    Raises:
        ConfigError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"the weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot read the weights file {path}: {error}") from error
    except Exception as error:
        # torch.load raises pickle errors for whatever is not a tensor; their text explains how to switch safety off.
        raise ConfigError(f"{path} is not a file of tensors alone; save model.state_dict() as .safetensors") from error
    return _unwrap(content, path)


def load_weights(model: nn.Module, path: str | PathLike[str], *, new_head: bool = False) -> None:
    """Load float weights from a local file into a model; every name and shape must match.

    Args:
        model: changed in place, or not at all.
        path: see `read_weights`.
        new_head: leave the last linear layer (or convolution) as it is where the file has it in another shape,
            which is how a network for other classes starts.

    Raises:
        ConfigError: the file is unusable, or tensors are missing, unexpected or of another shape.
    """
    load_state(model, read_weights(path), origin=str(path), new_head=new_head)


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, origin: str, new_head: bool = False) -> None:
    """Load a state dict into a model after checking all of it.

    The counters num_batches_tracked may be absent, as they are in files older than torch 0.4 and in many newer ones.

    Args:
        model: changed in place, or not at all.
        state: its names and tensors.
        origin: where `state` comes from, for messages.
        new_head: see `load_weights`.

    Raises:
        ConfigError: tensors are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    reshaped = [k for k in own if k in state and own[k].shape != state[k].shape]
    if new_head and reshaped:
        head = _head_name(model)
        state = {k: v for k, v in state.items() if k not in reshaped or k.rpartition(".")[0] != head}
        reshaped = [k for k in reshaped if k in state]
    if missing or unexpected or reshaped:
        shapes = [f"{k} ({list(state[k].shape)} instead of {list(own[k].shape)})" for k in reshaped]
        problems = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", shapes)]
        raise ConfigError(f"{origin} does not fit the {type(model).__name__}: " + "; ".join(filter(None, problems)))
    model.load_state_dict({**own, **state})


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    is_state = isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
    if not is_state or not content:
        raise ConfigError(f"{path} does not hold a state dict (names and tensors)")
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _head_name(model: nn.Module) -> str:
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return layers[-1] if layers else ""


def _listed(what: str, names: list[str], limit: int = 8) -> str:
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} {what}: {', '.join(names[:limit])}{more}"
