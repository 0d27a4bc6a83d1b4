"""Whether a float model has the layers that a layer table describes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bitswitch.errors import PrepareError
from bitswitch.layers.norm import is_batch_norm
from bitswitch.layers.registry import has_weight, why_not
from bitswitch.layers.table import LayerEntry, LayerTable


def check_parameter(entry: LayerEntry, parameters: Mapping[str, nn.Parameter]) -> None:
    """Check that a model has the bare matrix of a row.

    Args:
        entry: a row of the kind `PARAMETER`.
        parameters: those of the model by all their names.

    Raises:
        PrepareError: it is not there, or has another shape.
    """
    parameter = parameters.get(entry.name)
    if parameter is None or entry.status != "float":
        raise PrepareError(f"the model has no parameter {entry.name!r} that stays float")
    if isinstance(parameter, nn.UninitializedParameter) or tuple(parameter.shape) != entry.shape:
        raise PrepareError(f"parameter {entry.name!r} has not the shape {entry.shape}")


def check_fits(entry: LayerEntry, modules: Mapping[str, nn.Module], table: LayerTable) -> None:
    """Check that a float model has the layer of a row, and that it can become what the row says.

    Args:
        entry: a row of any other kind.
        modules: those of the model by name.
        table: that of the row.

    Raises:
        PrepareError: it does not fit; the message names the layer.
    """
    module = modules.get(entry.name)
    if module is None:
        raise PrepareError(f"the model has no layer {entry.name!r} ({entry.kind})")
    if type(module).__name__ != entry.kind:
        raise PrepareError(f"layer {entry.name!r} is a {type(module).__name__}, not a {entry.kind}")
    if entry.status == "per-width":
        if not is_batch_norm(module):
            raise PrepareError(f"layer {entry.name!r} ({entry.kind}) is not a BatchNorm")
        return
    weight = module._parameters.get("weight")
    if entry.shape and (weight is None or tuple(weight.shape) != entry.shape):
        found = None if weight is None else tuple(weight.shape)
        raise PrepareError(f"layer {entry.name!r} has a weight of shape {found}, not {entry.shape}")
    if entry.status == "quantized":
        reason = why_not(module) if has_weight(module) else f"{entry.kind} is not supported"
        if reason is not None:
            raise PrepareError(f"layer {entry.name!r} cannot be quantized: {reason}")
    if entry.alias_of is not None:
        owner = modules.get(entry.alias_of) if entry.alias_of in table else None
        if owner is None or owner._parameters.get("weight") is not weight:
            raise PrepareError(f"layer {entry.name!r} does not share its weight with {entry.alias_of!r}")
