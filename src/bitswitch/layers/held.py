"""How a state dict says that the codes of a layer are made of the leading bit planes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitswitch.errors import CheckpointError, MissingPlanesError

if TYPE_CHECKING:
    from bitswitch.layers.base import SwitchableLayer

# Beside the `codes` of a layer, and only if planes are missing: codes with all planes need no remark.
HELD_KEY = "planes_held"


def held_tensor(layer: SwitchableLayer) -> Tensor:
    """Return the remark: how many planes, and which checkpoint they are of; int64 (2,)."""
    # On the CPU whatever the default device is.
    return torch.tensor([layer.num_planes, layer.planes_of], dtype=torch.int64, device="cpu")


def planes_in(layer: SwitchableLayer, state_dict: Mapping[str, Any], prefix: str) -> int | None:
    """Return how many leading planes the codes in a state dict are made of, or None if the layer takes none from it.

    Args:
        layer: the layer, which stays as it is.
        state_dict: names and tensors; codes without a remark have all planes.
        prefix: what the names of this layer's tensors begin with.

    Raises:
        MissingPlanesError: they are too few for the active width.
        CheckpointError: planes are missing, and they are of another checkpoint; or the remark is invalid.
    """
    codes = state_dict.get(f"{prefix}codes")
    # Codes of another shape are refused by PyTorch.
    if not layer.is_frozen or not isinstance(codes, Tensor) or codes.shape != layer.codes.shape:
        return None
    if f"{prefix}{HELD_KEY}" not in state_dict:
        return layer.stored_bits
    name = prefix.removesuffix(".")
    num_planes, planes_of = _read(state_dict[f"{prefix}{HELD_KEY}"], name, layer.stored_bits)
    if num_planes < layer.stored_bits:
        _check_origin(layer, name, num_planes, planes_of)
        _check_enough(layer, name, num_planes)
    return num_planes


def _read(value: Any, name: str, stored_bits: int) -> tuple[int, int]:
    integers = isinstance(value, Tensor) and value.shape == (2,) and value.dtype == torch.int64 and not value.is_meta
    num_planes, planes_of = value.tolist() if integers else (0, 0)
    if not 1 <= num_planes <= stored_bits:
        raise CheckpointError(
            f"the state dict has no valid {HELD_KEY!r} for layer {name!r}: expected 1 to {stored_bits} bit planes and "
            "the number of their checkpoint, as two integers"
        )
    return num_planes, planes_of


def _check_origin(layer: SwitchableLayer, name: str, num_planes: int, planes_of: int) -> None:
    """Refuse codes whose other planes are not those that the model would read later."""
    if planes_of != layer.planes_of:
        raise CheckpointError(
            f"the state dict has {num_planes} of {layer.stored_bits} bit planes of layer {name!r}, of another "
            "checkpoint than the one that the model was opened from; open that checkpoint instead"
        )


def _check_enough(layer: SwitchableLayer, name: str, num_planes: int) -> None:
    needed = layer.planes_needed(layer.bits)
    if num_planes < needed:
        enough = [bits for bits in layer.widths if layer.planes_needed(bits) <= num_planes]
        advice = f"switch the model to {enough[0]} bits first" if enough else "no width of it can run with so few"
        raise MissingPlanesError(
            f"the state dict has {num_planes} of {layer.stored_bits} bit planes of layer {name!r}, and {layer.bits} "
            f"bits, at which it runs, need {needed}; {advice}"
        )
