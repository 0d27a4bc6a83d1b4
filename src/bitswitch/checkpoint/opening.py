"""What opening a checkpoint and loading it share: the network with all that is not planes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch._prepare import apply_table
from bitswitch.checkpoint.config import CheckpointConfig
from bitswitch.checkpoint.contents import check_finite, check_form, check_names, input_keys, quantizer_keys, scale_shape
from bitswitch.checkpoint.plain_state import plain_state
from bitswitch.checkpoint.reader import open_base
from bitswitch.errors import ArgumentError, BitswitchError, CheckpointError, PrepareError
from bitswitch.layers.base import SwitchableLayer, iter_layers, layer_of
from bitswitch.layers.table import state_of


def open_network(folder: Path, config: CheckpointConfig, into: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a switchable network with everything of a checkpoint but the weights of its quantized layers.

    Those weights are on the meta device, unless widths do not share scales and the weights are floats. What `into` has
    on the meta device is made on the CPU.

    Args:
        folder: the checkpoint.
        config: its checked configuration.
        into: a float model of the same architecture; it is copied without the weights that are not needed.

    Returns:
        The network, and the scales, zero points and codes of the base file by name.

    Raises:
        CheckpointError: the base file is damaged, or the checkpoint belongs to another architecture.
        PrepareError: `into` is prepared already.
        ArgumentError: `into` is not a module.
    """
    _check_float(into)
    model = _switchable_copy(into, folder, config)
    with open_base(folder, config) as tensors:
        _copy_plain(model, config, tensors, str(folder / config.base.file))
        _set_inputs(model, config, tensors)
        quantizers = {name: tensors[name].clone() for name in quantizer_keys(config)}
    state_of(model).calibrated = True
    return model, quantizers


def _check_float(into: nn.Module) -> None:
    if not isinstance(into, nn.Module):
        raise ArgumentError(f"into= takes a torch.nn.Module; got {type(into).__name__}")
    if "_bitswitch" in into.__dict__ or any(True for _ in iter_layers(into)):
        raise PrepareError("into= takes a float model, and this one is prepared; build the float model again")


def _switchable_copy(into: nn.Module, folder: Path, config: CheckpointConfig) -> nn.Module:
    model = copy.deepcopy(into, _weights_on_meta(into, config) if config.options.shared else {})
    try:
        apply_table(model, config.table, config.bits, config.options)
    except BitswitchError as error:
        raise CheckpointError(f"{folder}: belongs to another architecture than into=: {error}") from None
    _move_quantizers(model, into)
    for entry in config.table.select("quantized"):
        if entry.alias_of is not None:
            continue
        layer = layer_of(model, entry.name)
        stored, found = config.weights[entry.name].shape, tuple(layer.out_first(layer.weight).shape)
        if stored != found or scale_shape(config, entry) != layer.weight_quantizer.scale_shape:
            raise CheckpointError(
                f"{folder}: belongs to another architecture than into=: the weight of layer {entry.name!r} has the "
                f"out-first shape {found} with scales {layer.weight_quantizer.scale_shape}, "
                f"stored is {stored} with scales {scale_shape(config, entry)}"
            )
    return model


def _move_quantizers(model: nn.Module, into: nn.Module) -> None:
    """Move quantizers to where `into` has the weights that are on the meta device in its copy."""
    originals = dict(into.named_modules(remove_duplicate=False))
    for name, layer in iter_layers(model):
        weight = originals[name]._parameters.get("weight") if name in originals else None
        if weight is not None and not weight.is_meta:
            for quantizer in (layer.weight_quantizer, layer.input_quantizer):
                if quantizer is not None:
                    quantizer.to(weight.device)


def _weights_on_meta(into: nn.Module, config: CheckpointConfig) -> dict[int, nn.Parameter]:
    """Return what `copy.deepcopy` puts in place of the weights that only planes will have."""
    # A layer that is not there is made by an adapter, or the model does not fit, which is found later.
    names = {entry.name for entry in config.table.select("quantized")}
    layers = {module for name, module in into.named_modules(remove_duplicate=False) if name in names}
    others = [module for module in into.modules() if module not in layers]
    kept = {id(parameter) for module in others for parameter in module._parameters.values()}
    weights = [layer._parameters.get("weight") for layer in layers]
    return {
        id(weight): nn.Parameter(_empty_like(weight, "meta"), requires_grad=weight.requires_grad)
        for weight in weights
        if weight is not None and weight.is_floating_point() and id(weight) not in kept
    }


def _empty_like(tensor: Tensor, device: str) -> Tensor:
    """Do what `torch.empty_like` does, which on the meta device imports sympy: 35 MB of memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = formats.get(tensor.dim(), torch.contiguous_format)
    if tensor.is_contiguous() or not tensor.is_contiguous(memory_format=memory_format):
        memory_format = torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=memory_format)


def _materialise(model: nn.Module, *, shared: bool) -> None:
    """Give the tensors of a model that are on the meta device memory, but for the weights that will be integers."""
    made: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        skipped = {"weight"} if shared and isinstance(module, SwitchableLayer) else set()
        both: list[dict[str, Any]] = [module._parameters, module._buffers]  # pyright: ignore[reportAssignmentType]
        for tensors in both:
            for key, tensor in tensors.items():
                if tensor is None or not tensor.is_meta or key in skipped:
                    continue
                if key in module._non_persistent_buffers_set:
                    full = f"{name}.{key}" if name else key
                    raise PrepareError(
                        f"the buffer {full!r} of into= is on the meta device, and checkpoints do not have it "
                        "(persistent=False); build the model with this buffer on the CPU"
                    )
                if id(tensor) not in made:
                    empty = _empty_like(tensor, "cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                tensors[key] = made[id(tensor)]


@torch.no_grad()
def _copy_plain(model: nn.Module, config: CheckpointConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy what has no part in quantization; names, shapes and types must agree exactly, in both directions."""
    _materialise(model, shared=config.options.shared)
    state = plain_state(model, shared=config.options.shared)
    check_names({**state, **dict.fromkeys(quantizer_keys(config))}, tensors, where)
    for name, target in state.items():
        check_form(name, tensors[name], tuple(target.shape), target.dtype, where)
        if isinstance(target, nn.Parameter):
            check_finite(name, tensors[name], where)
    for name, target in state.items():
        target.copy_(tensors[name])


def _set_inputs(model: nn.Module, config: CheckpointConfig, tensors: Mapping[str, Tensor]) -> None:
    for entry in config.table.select("quantized"):
        quantizer = layer_of(model, entry.name).input_quantizer
        for bits, (scale, zero_point) in input_keys(entry).items():
            assert quantizer is not None
            quantizer.set_(bits, tensors[scale], None if zero_point is None else int(tensors[zero_point]))
