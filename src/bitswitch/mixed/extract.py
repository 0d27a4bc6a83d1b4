"""One SubNet as a network of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from bitswitch.errors import CalibrationError, PrecisionError, PrepareError
from bitswitch.layers.base import SwitchableLayer, layer_of
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.layers.table import LayerTable, ModelState, QuantizerOptions, state_of, unwrap
from bitswitch.precision import Precision
from bitswitch.quantizers import ActivationQuantizer, WeightQuantizer
from bitswitch.switching import at, norm_keys


@torch.no_grad()
def extract(model: nn.Module, precision: int | Mapping[str, int] | Precision) -> nn.Module:
    """Return a copy of a SuperNet that runs at one precision only, bit for bit as the SuperNet does there.

    Each layer keeps the integers of its own width and no others, one scale of its input, and one BatchNorm. A
    checkpoint of the copy therefore has b bits for every weight of a b-bit layer, where one of the SuperNet at this
    precision (`bitswitch.save(precision=…)`) has b + 1 below the stored width, or b where that is mid-rise, and the
    BatchNorms of all widths.

    Args:
        model: a prepared and calibrated model, trainable or loaded; it stays as it is.
        precision: that the copy has.

    Returns:
        A copy of the class of the model that holds stored integers, in evaluation mode. Its layers have one width
        each, so `bitswitch.switch` changes nothing. `bitswitch.save` refuses to put it in the place of the checkpoint
        that the model was loaded from.

    Raises:
        PrepareError: the model is not prepared, or its widths do not share scales.
        CalibrationError: it is not calibrated.
        PrecisionError, UnknownLayerError: it cannot run at the precision, or layers that share a weight differ in it.
        MissingPlanesError: files of bit planes that the precision needs are not there.
    """
    network = unwrap(model)
    state = state_of(network)
    if not state.options.shared:
        raise PrepareError("widths that do not share a scale have float weights and nothing to extract")
    if not state.calibrated:
        raise CalibrationError("the model is not calibrated; call bitswitch.calibrate(model, batches) first")
    precision = Precision.of(precision)
    resolved = state.table.resolve(precision, network)
    _check_shared(state, resolved)
    with at(network, precision):
        alone = copy.deepcopy(network)
    _keep_layers(alone, state, resolved)
    width = max(resolved.values())
    norms = _keep_norms(alone, state, norm_keys(state, precision, resolved), width)
    entries = [
        replace(entry, bits=(resolved[entry.name],))
        if entry.status == "quantized"
        else replace(entry, bits=(norms[entry.name],), width_to=None)
        if entry.status == "per-width"
        else entry
        for entry in state.table.values()
    ]
    alone.__dict__["_bitswitch"] = ModelState(
        (width,),
        LayerTable(entries),
        Precision.of(width),
        _own_options(state.options, set(resolved.values())),
        calibrated=True,
        extracted_from=state.source or state.extracted_from,
    )
    return alone.eval()


def _check_shared(state: ModelState, resolved: Mapping[str, int]) -> None:
    for entry in state.table.select("quantized"):
        if entry.alias_of is not None and resolved[entry.name] != resolved[entry.alias_of]:
            raise PrecisionError(
                f"the layers {entry.alias_of!r} and {entry.name!r} share a weight and need one width to be stored; "
                f"got {resolved[entry.alias_of]} and {resolved[entry.name]}"
            )


def _keep_layers(network: nn.Module, state: ModelState, resolved: Mapping[str, int]) -> None:
    """Replace the quantizers and weights of layers by those of one width."""
    stored: dict[str, tuple[WeightQuantizer, Tensor]] = {}
    for entry in state.table.select("quantized"):
        layer, bits = layer_of(network, entry.name), resolved[entry.name]
        if entry.alias_of is None:
            stored[entry.name] = _own_weight(layer, bits)
        quantizer, codes = stored[entry.alias_of or entry.name]
        layer.weight_quantizer = quantizer
        layer.set_codes(codes, quantizer.scale.value(), bits)
        if layer.input_quantizer is not None:
            layer.input_quantizer = _own_input(layer.input_quantizer, bits)
        layer.bits = bits


def _own_weight(layer: SwitchableLayer, bits: int) -> tuple[WeightQuantizer, Tensor]:
    """Return the quantizer of a layer for one width, with its scale s_l = s_h·2^Δ, and the codes W̃_l."""
    old = layer.weight_quantizer
    codes = layer.weight_codes(bits)
    new = WeightQuantizer(
        codes.shape,
        (bits,),
        old.granularity,
        old.group_size,
        parametrization=old.scale.parametrization,
        gradient_scale=old.gradient_scale,
        midrise=tuple({bits}.intersection(old.midrise)),
    )
    # A power of two: the product is exact, and so is what the codes stand for.
    new.scale.set_(old.scale.value() * 2.0 ** (old.stored_bits - bits))
    return new.to(codes.device), codes


def _own_options(options: QuantizerOptions, widths: set[int]) -> QuantizerOptions:
    """Return the options without what they say of other widths."""
    return replace(
        options,
        midrise=tuple(width for width in options.midrise if width in widths),
        activation_bits=tuple(pair for pair in options.activation_bits if pair[0] in widths),
    )


def _own_input(old: ActivationQuantizer, bits: int) -> ActivationQuantizer:
    scale, zero_point = old.scale_for(bits), old.zero_point_for(bits)
    new = ActivationQuantizer(
        (bits,),
        signed=old.signed,
        parametrization=scale.parametrization,
        gradient_scale=old.gradient_scale,
        layer_name=old.layer_name,
        input_bits=old.input_bits,
    ).to(scale.parameter.device)
    new.set_(bits, scale.value(), None if zero_point is None else zero_point.value())
    return new


def _keep_norms(network: nn.Module, state: ModelState, keys: Mapping[str, str], width: int) -> dict[str, int]:
    """Leave every BatchNorm its active normalisation and return the width of each."""
    widths: dict[str, int] = {}
    for entry in state.table.select("per-width"):
        norm = network.get_submodule(entry.name)
        assert isinstance(norm, PerWidthNorm)
        bits = norm.bits if entry.width_from is not None else width
        norm.norms = nn.ModuleDict({str(bits): norm.norms[keys[entry.name]]})
        norm.key = str(bits)
        widths[entry.name] = bits
    return widths
