"""Load a switchable model from a checkpoint."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bitswitch._prepare import apply_table
from bitswitch.checkpoint.config import CheckpointConfig, read_config
from bitswitch.checkpoint.contents import (
    check_form,
    check_names,
    codes_key,
    input_keys,
    quantizer_keys,
    scale_shape,
    weight_scale_keys,
)
from bitswitch.checkpoint.plain_state import plain_state
from bitswitch.checkpoint.reader import open_base, read_codes
from bitswitch.checkpoint.source import FolderPlanes
from bitswitch.errors import ArgumentError, BitswitchError, CheckpointError, PrepareError
from bitswitch.layers.base import SwitchableLayer, iter_layers
from bitswitch.layers.table import LayerEntry, state_of
from bitswitch.precision import Precision
from bitswitch.switching import switch


def load(
    folder: str | os.PathLike[str],
    *,
    into: nn.Module,
    bits: int | Mapping[str, int] | Precision | None = None,
) -> nn.Module:
    """Open a checkpoint, reading only the bit planes that a precision needs.

    The loaded layers hold integer codes; `bitswitch.switch` reads further planes from the folder when they are needed,
    and `bitswitch.unfreeze` makes the model trainable again.

    Args:
        folder: a checkpoint written by `save`.
        into: a float model of the same architecture; it is copied and stays as it is. Its weights do not matter.
        bits: the precision to open at; by default the highest width, or the `precision` that `save` was given.

    Returns:
        A switchable model of the class of `into`, on its device, in evaluation mode.

    Raises:
        MissingPlanesError: files of bit planes are not there; they are named.
        CheckpointError: a file is damaged, or the checkpoint belongs to another architecture.
        PrecisionError, UnknownLayerError, ArgumentError: `bits` is invalid, or `into` is not a module.
        PrepareError: `into` is prepared already.
    """
    _check_float(into)
    folder = Path(folder)
    config = read_config(folder)
    precision = config.precision if bits is None else Precision.of(bits)
    needed = config.needed(precision.resolve(config.table.available))
    model = _switchable_copy(into, folder, config)
    with open_base(folder, config) as tensors:
        _copy_plain(model, config, tensors, str(folder / config.base.file))
        _set_inputs(model, config, tensors)
        scales = {name: tensors[name].clone() for name in quantizer_keys(config)}
    codes = read_codes(folder, config, needed)
    _set_weights(model, config, scales, codes, needed)
    state = state_of(model)
    state.source = FolderPlanes(folder.absolute(), config)
    state.calibrated = True
    switch(model, precision)
    return model.eval()


def _check_float(into: nn.Module) -> None:
    if not isinstance(into, nn.Module):
        raise ArgumentError(f"into= takes a torch.nn.Module; got {type(into).__name__}")
    if "_bitswitch" in into.__dict__ or any(True for _ in iter_layers(into)):
        raise PrepareError("into= takes a float model, and this one is prepared; build the float model again")


def _switchable_copy(into: nn.Module, folder: Path, config: CheckpointConfig) -> nn.Module:
    model = copy.deepcopy(into)
    try:
        apply_table(model, config.table, config.bits, config.options)
    except BitswitchError as error:
        raise CheckpointError(f"{folder}: belongs to another architecture than into=: {error}") from None
    for entry in config.table.select("quantized"):
        if entry.alias_of is not None:
            continue
        layer = _layer(model, entry)
        stored, found = config.weights[entry.name].shape, tuple(layer.out_first(layer.weight).shape)
        if stored != found or scale_shape(config, entry) != layer.weight_quantizer.scale_shape:
            raise CheckpointError(
                f"{folder}: belongs to another architecture than into=: the weight of layer {entry.name!r} has the "
                f"out-first shape {found} with scales {layer.weight_quantizer.scale_shape}, "
                f"stored is {stored} with scales {scale_shape(config, entry)}"
            )
    return model


def _layer(model: nn.Module, entry: LayerEntry) -> SwitchableLayer:
    layer = model.get_submodule(entry.name)
    assert isinstance(layer, SwitchableLayer)
    return layer


@torch.no_grad()
def _copy_plain(model: nn.Module, config: CheckpointConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy what has no part in quantization; names, shapes and types must agree exactly, in both directions."""
    state = plain_state(model, shared=config.options.shared)
    check_names({**state, **dict.fromkeys(quantizer_keys(config))}, tensors, where)
    for name, target in state.items():
        check_form(name, tensors[name], tuple(target.shape), target.dtype, where)
        if isinstance(target, nn.Parameter) and not bool(tensors[name].isfinite().all()):
            raise CheckpointError(f"{where}: tensor {name!r}: has infinite values")
    for name, target in state.items():
        target.copy_(tensors[name])


def _set_inputs(model: nn.Module, config: CheckpointConfig, tensors: Mapping[str, Tensor]) -> None:
    for entry in config.table.select("quantized"):
        quantizer = _layer(model, entry).input_quantizer
        for bits, (scale, zero_point) in input_keys(entry).items():
            assert quantizer is not None
            quantizer.set_(bits, tensors[scale], None if zero_point is None else int(tensors[zero_point]))


def _set_weights(
    model: nn.Module,
    config: CheckpointConfig,
    scales: Mapping[str, Tensor],
    codes: Mapping[str, Tensor],
    needed: Mapping[str, int],
) -> None:
    placed: dict[str, Tensor] = {}
    for entry in config.table.select("quantized"):
        stored = config.table[config.storing(entry.name)]
        layer = _layer(model, entry)
        if not config.options.shared:
            for bits, name in weight_scale_keys(config, entry).items():
                layer.weight_quantizer.scale_for(bits).set_(scales[name])
            continue
        name = codes_key(config, stored)
        if stored.name not in placed:
            # Layers that share a weight share the tensor of its codes as well.
            source = codes[stored.name] if name is None else scales[name]
            placed[stored.name] = source.to(layer.weight_quantizer.scale.parameter.device)
        num_planes = needed[stored.name] if name is None else stored.bits[0]
        (scale,) = (scales[key] for key in weight_scale_keys(config, stored).values())
        layer.set_codes(placed[stored.name], scale, num_planes)
