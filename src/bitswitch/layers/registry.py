"""Which layer classes can be made switchable, and how."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from bitswitch.layers.attention import ProjectedMultiheadAttention, why_not_attention
from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.conv import (
    SwitchableConv1d,
    SwitchableConv2d,
    SwitchableConv3d,
    SwitchableConvTranspose1d,
    SwitchableConvTranspose2d,
    SwitchableConvTranspose3d,
    TransposedConv,
)
from bitswitch.layers.derived import derived_class
from bitswitch.layers.embedding import SwitchableEmbedding
from bitswitch.layers.foreign import import_target, qualified_name
from bitswitch.layers.linear import SwitchableLinear
from bitswitch.quantizers import ActivationQuantizer, WeightQuantizer

_CLASSES: dict[type[nn.Module], type[SwitchableLayer]] = {
    nn.Linear: SwitchableLinear,
    nn.Conv1d: SwitchableConv1d,
    nn.Conv2d: SwitchableConv2d,
    nn.Conv3d: SwitchableConv3d,
    nn.ConvTranspose1d: SwitchableConvTranspose1d,
    nn.ConvTranspose2d: SwitchableConvTranspose2d,
    nn.ConvTranspose3d: SwitchableConvTranspose3d,
    nn.Embedding: SwitchableEmbedding,
}

# Layers of other libraries, by qualified name: their switchable class is imported when one is met.
_FOREIGN_CLASSES: dict[str, str] = {
    "transformers.pytorch_utils.Conv1D": "bitswitch.integrations.transformers:SwitchableConv1D",
}

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)


def switchable_class(kind: type[nn.Module]) -> type[SwitchableLayer] | None:
    """Return the switchable class of a layer class, or None if there is none.

    A subclass counts as the class whose `forward` it inherits, if it overrides nothing that the switchable class uses.
    """
    if kind in _CLASSES:
        return _CLASSES[kind]
    foreign = _FOREIGN_CLASSES.get(qualified_name(kind))
    if foreign is not None:
        return import_target(foreign)
    for base, switchable in _CLASSES.items():
        if issubclass(kind, base) and kind.forward is base.forward and not issubclass(kind, SwitchableLayer):
            return derived_class(switchable, kind, f"Switchable{kind.__name__}")
    return None


def has_weight(module: nn.Module) -> bool:
    """Whether a module is of a kind whose weights one would expect to be quantized."""
    if isinstance(module, nn.MultiheadAttention):
        # Its projections are layers of their own once it is adapted; otherwise their weights are its own.
        own = any(module._parameters.get(name) is not None for name in ("in_proj_weight", "q_proj_weight"))
        return not isinstance(module, ProjectedMultiheadAttention) and (own or parametrize.is_parametrized(module))
    return isinstance(module, _WEIGHTED) or qualified_name(type(module)) in _FOREIGN_CLASSES


def float_weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a weighted module as it stores them; several if it is recurrent or parametrized.

    The biases of such a module, and whatever else it has besides a plain weight, are not among them.
    """
    weight = module._parameters.get("weight")
    if weight is not None:
        found = [weight]
    else:
        found = [parameter for name, parameter in module.named_parameters(recurse=False) if "weight" in name]
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.Module)
            found += module.parametrizations.parameters()
    # An attention that is not adapted has biases of three dimensions, which are called so.
    return [p for p in found if not isinstance(p, nn.UninitializedParameter) and (p is weight or p.dim() > 1)]


def why_not(module: nn.Module) -> str | None:
    """Return why a weighted module cannot be made switchable, or None if it can."""
    if isinstance(module, nn.MultiheadAttention):
        return why_not_attention(module) or "it shares a projection's weight with another module"
    if parametrize.is_parametrized(module):
        return "its weight is computed by a parametrization; remove it first (torch.nn.utils.parametrize)"
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in module.parameters(recurse=False)):
        return "it is lazy and not initialised; run the model once first"
    if switchable_class(type(module)) is None:
        base = next((b for b in _CLASSES if isinstance(module, b)), None)
        if base is not None:
            return f"{type(module).__name__} overrides the forward of {base.__name__}"
        return f"{type(module).__name__} is not supported"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm changes the rows of its weight as they are looked up"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is not a plain parameter"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    if weight.numel() == 0:
        return "its weight is empty"
    return None


def layout(layer: nn.Module) -> tuple[Any, ...]:
    """Return what the out-first view of a float layer's weight depends on: layers that share codes must agree in it."""
    switchable = switchable_class(type(layer))
    assert switchable is not None
    # Groups of other convolutions do not change which rows belong to an output channel.
    return switchable.out_first, layer.groups if issubclass(switchable, TransposedConv) else None


def make_switchable(
    layer: nn.Module, weight_quantizer: WeightQuantizer, input_quantizer: ActivationQuantizer | None
) -> SwitchableLayer:
    """Change a float layer in place into its switchable class and return it."""
    switchable = switchable_class(type(layer))
    assert switchable is not None
    layer.__class__ = switchable
    assert isinstance(layer, SwitchableLayer)
    layer._attach(weight_quantizer, input_quantizer)
    return layer
