"""What of a model goes into the base file under its own name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from bitswitch._files import why_not_stored
from bitswitch.errors import CheckpointError
from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.held import HELD_KEY


def plain_state(model: nn.Module, *, shared: bool) -> dict[str, Tensor]:
    """Return everything in a model's state except quantizers and quantized weights, tied tensors once.

    The tensors are those of the model, not copies, so they serve for saving and for loading into.

    Args:
        model: a switchable model.
        shared: whether widths share a weight scale; otherwise the float weights are part of the state.

    Raises:
        CheckpointError: a module keeps state that is not a tensor, or a tensor that cannot be stored.
    """
    skipped: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SwitchableLayer):
            parts = ("weight_quantizer", "input_quantizer", *(("weight", "codes", HELD_KEY) if shared else ()))
            skipped.update(f"{name}.{part}" if name else part for part in parts)
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if any(prefix in skipped for prefix in _prefixes(name)):
            continue
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name!r} is a {type(tensor).__name__}; only tensors can be stored")
        reason = why_not_stored(tensor)
        if reason is not None:
            raise CheckpointError(f"tensor {name!r} {reason}")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def _prefixes(name: str) -> Iterator[str]:
    """Yield a dotted name and its ancestors."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))
