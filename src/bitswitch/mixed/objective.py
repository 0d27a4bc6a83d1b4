"""What the search minimises: how much each layer's width is expected to hurt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from bitswitch.errors import ConfigError, UnknownLayerError
from bitswitch.layers.base import SwitchableLayer, layer_of
from bitswitch.layers.table import LayerEntry, state_of, unwrap
from bitswitch.mixed.sensitivity import Sensitivity

Objective = Literal["perturbation", "weighted-bits"]
ObjectiveTable = dict[str, dict[int, float]]


def perturbation(
    model: nn.Module,
    sensitivity: Mapping[str, float],
    input_errors: Mapping[str, Mapping[int, float]] | None = None,
) -> ObjectiveTable:
    """Return the expected perturbation of the loss by every layer at every width, HAWQ-V2 (arXiv:1911.03852).

    Ω_l(b) = (t_l / n_l) · ‖Ŵ_l(b) − W_l‖², with t_l the trace of the loss's Hessian over the n_l weights of the layer
    and Ŵ_l(b) the double-rounded weight. A loaded layer has no W_l: its stored integers stand in for it. If the errors
    of the inputs are given, (τ_l / m_l) · E‖X̂_l(b) − X_l‖² is added, with τ_l the trace over the m_l input elements of
    an example.

    Args:
        model: a prepared model.
        sensitivity: t_l by layer, a `Sensitivity` or any mapping.
        input_errors: E‖X̂_l(b) − X_l‖² by layer and width, from `input_errors`; the sensitivity must then have traces
            with respect to the inputs.

    Returns:
        {layer: {width: Ω}} for the layers that store a weight.

    Raises:
        ConfigError: a trace is missing, NaN, or clearly negative, or the sensitivity is that of another model.
        UnknownLayerError: the mapping names a layer that the model does not have.
    """
    owners = stored_layers(model)
    traces = checked_traces(model, sensitivity, owners)
    table: ObjectiveTable = {}
    for name, entry in owners.items():
        layer = layer_of(unwrap(model), name)
        per_weight = traces[name] / math.prod(entry.shape)
        table[name] = {bits: per_weight * error for bits, error in _weight_errors(name, layer).items()}
    if input_errors is not None:
        _add_inputs(table, model, sensitivity, input_errors)
    return table


def weighted_bits(model: nn.Module, sensitivity: Mapping[str, float]) -> ObjectiveTable:
    """Return −(t_l / n_l)·b for every layer and width: minimising it gives sensitive layers many bits.

    Algorithm 2 of arXiv:2502.01199 prints the opposite sign, which gives the most sensitive layers the fewest bits,
    against its text.

    Args:
        model: a prepared model.
        sensitivity: t_l by layer.

    Raises:
        ConfigError, UnknownLayerError: as `perturbation`.
    """
    owners = stored_layers(model)
    traces = checked_traces(model, sensitivity, owners)
    return {
        name: {bits: -traces[name] / math.prod(entry.shape) * bits for bits in entry.bits}
        for name, entry in owners.items()
    }


def stored_layers(model: nn.Module) -> dict[str, LayerEntry]:
    """Return the rows of the quantized layers that store a weight, by name."""
    return {e.name: e for e in state_of(model).table.select("quantized") if e.alias_of is None}


def checked_traces(
    model: nn.Module, sensitivity: Mapping[str, float], owners: Mapping[str, LayerEntry]
) -> dict[str, float]:
    """Return t_l ≥ 0 of every layer that stores a weight.

    Raises:
        ConfigError, UnknownLayerError: as `perturbation`.
    """
    if isinstance(sensitivity, Sensitivity):
        sensitivity.check_fits(model)
        return sensitivity.usable(owners)
    table = state_of(model).table
    unknown = next((name for name in sensitivity if name not in table), None)
    if unknown is not None:
        raise UnknownLayerError(f"the sensitivity names layer {unknown!r}, which the model does not have")
    for name in owners:
        value = sensitivity.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ConfigError(f"the sensitivity has no number for layer {name!r}: {value!r}")
        if not math.isfinite(value) or value < 0:
            raise ConfigError(f"the sensitivity of layer {name!r} must be finite and not negative; it is {value}")
    return {name: float(sensitivity[name]) for name in owners}


@torch.no_grad()
def _weight_errors(name: str, layer: SwitchableLayer) -> dict[int, float]:
    """Return ‖Ŵ(b) − W‖² for every width of a layer."""
    if layer.num_planes < layer.stored_bits:
        raise ConfigError(
            f"layer {name!r} was opened from {layer.num_planes} of {layer.stored_bits} bit planes; a search needs all"
        )
    quantizer = layer.weight_quantizer
    if layer.is_frozen:
        reference = quantizer.dequantize(layer.codes, layer.stored_bits)
    else:
        reference = layer.out_first(layer.weight.detach()).float()
    return {
        bits: float((quantizer.dequantize(layer.weight_codes(bits), bits) - reference).double().square().sum())
        for bits in layer.widths
    }


def _add_inputs(
    table: ObjectiveTable,
    model: nn.Module,
    sensitivity: Mapping[str, float],
    errors: Mapping[str, Mapping[int, float]],
) -> None:
    rows = {e.name: e for e in state_of(model).table.select("quantized") if e.input != "float"}
    if not isinstance(sensitivity, Sensitivity) or not sensitivity.inputs:
        raise ConfigError("the sensitivity has no traces with respect to inputs; estimate it with inputs=True")
    traces = sensitivity.usable_inputs(rows)
    for name, entry in rows.items():
        if name not in errors:
            raise ConfigError(f"the input errors lack layer {name!r}")
        per_element = traces[name] / sensitivity.inputs[name].size
        for bits in entry.bits:
            table[entry.alias_of or name][bits] += per_element * errors[name][bits]


def resolve_objective(
    model: nn.Module, sensitivity: Mapping[str, float], objective: Objective | Mapping[str, Mapping[int, float]]
) -> Mapping[str, Mapping[int, float]]:
    """Return the table that an objective's name stands for, or a table given, checked.

    Raises:
        ConfigError: the name is unknown, or the table lacks a value or has one that is not finite.
    """
    if objective == "perturbation":
        return perturbation(model, sensitivity)
    if objective == "weighted-bits":
        return weighted_bits(model, sensitivity)
    if isinstance(objective, str) or not isinstance(objective, Mapping):
        raise ConfigError(f"objective must be 'perturbation', 'weighted-bits' or a table; got {objective!r}")
    for name, entry in stored_layers(model).items():
        row: Any = objective.get(name)
        for bits in entry.bits:
            value = row.get(bits) if isinstance(row, Mapping) else None
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"the objective has no finite value for layer {name!r} at {bits} bits")
    return objective
