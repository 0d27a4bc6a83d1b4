"""Modules that read the weights of their layers instead of calling them, rewritten so that they call them."""

from __future__ import annotations

from collections import Counter

from torch import nn

from bitswitch.layers.attention import avoid_fast_path, project, why_not_attention
from bitswitch.layers.foreign import import_target, qualified_name

# Modules of other libraries: the function that rewrites one in place is imported when one is met.
_FOREIGN_ADAPTERS: dict[str, str] = {
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "bitswitch.integrations.torchvision_attention:adapt",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": (
        "bitswitch.integrations.torchvision_attention:adapt"
    ),
}


def adapt(model: nn.Module) -> None:
    """Rewrite, in place, the modules of a float model that hide weighted layers; the float function stays the same.

    A `torch.nn.MultiheadAttention` gets the layers q_proj, k_proj, v_proj and out_proj; one that cannot, stays as it is
    and has a row with the reason in the layer table. Names of its parameters change, those of other modules do not.

    Args:
        model: a float model; adapting it again changes nothing.
    """
    shared = _shared_parameters(model)
    for module in list(model.modules()):
        avoid_fast_path(module)
        foreign = _FOREIGN_ADAPTERS.get(qualified_name(type(module)))
        if foreign is not None:
            import_target(foreign)(module)
        elif isinstance(module, nn.MultiheadAttention) and why_not_attention(module) is None:
            # Split, a weight that two modules share would become two weights.
            own = {id(parameter) for parameter in module.parameters(recurse=False)}
            if own.isdisjoint(shared):
                project(module)


def _shared_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that more than one module holds."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return {parameter for parameter, count in owners.items() if count > 1}
