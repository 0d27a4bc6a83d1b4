"""Turn a prepared network into one without float weights in its quantized layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bitswitch.errors import CalibrationError, PrepareError
from bitswitch.layers.base import SwitchableLayer, layer_of
from bitswitch.layers.table import ModelState
from bitswitch.runtime.cache import DerivedCache
from bitswitch.runtime.configuration import Active
from bitswitch.runtime.conv_layers import IntegerConv, IntegerConvTranspose
from bitswitch.runtime.layers import FollowingNorm, IntegerEmbedding, IntegerLayer, IntegerLinear, mixed
from bitswitch.runtime.stored import StoredWeight
from bitswitch.runtime.tiles import tiles_bytes

_EMPTIED = ("weight", "codes")


def check_deployable(network: nn.Module, state: ModelState, *, dynamic: bool) -> None:
    """Refuse a network that integers cannot run.

    Args:
        network: a prepared network.
        state: what is known of it.
        dynamic: whether layers with float inputs may quantize each row as it comes.

    Raises:
        PrepareError: there are no common integers, inputs stay float, or the network is not on the CPU.
        CalibrationError: scales are missing.
    """
    if not state.options.shared:
        raise PrepareError(
            "this model was prepared with shared=False: every width rounds the float weights with a scale of its own, "
            "so there are no common integers to execute"
        )
    floats: list[str] = []
    for entry in state.table.select("quantized"):
        layer = layer_of(network, entry.name)
        if layer.input_quantizer is None:
            floats += [] if isinstance(layer, nn.Embedding) else [entry.name]
        elif not layer.input_quantizer.calibrated:
            raise CalibrationError(
                f"the input of layer {entry.name!r} has no scales yet; call bitswitch.calibrate(model, batches) first"
            )
    if floats and not dynamic:
        shown = ", ".join(floats[:8]) + (", …" if len(floats) > 8 else "")
        raise PrepareError(
            f"the inputs of {len(floats)} layers stay float (activations=False), and integers cannot be multiplied by "
            f"floats: {shown}; pass dynamic=True to quantize every row of them to 8 bits as it comes"
        )
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.device.type not in ("cpu", "meta"):
            raise PrepareError(f"an engine runs on the CPU, but {name!r} is on {tensor.device}; deploy model.cpu()")


def stored_weights(network: nn.Module, state: ModelState, derived: DerivedCache) -> dict[str, StoredWeight]:
    """Return the stored weights of a network in memory, by the names of its layers; shared ones are one object."""
    weights: dict[str, StoredWeight] = {}
    for entry in state.table.select("quantized"):
        if entry.alias_of is None:
            layer = layer_of(network, entry.name)
            codes = layer.weight_codes(layer.stored_bits).cpu()
            weights[entry.name] = StoredWeight.from_codes(
                entry.name, codes, layer.stored_bits, layer.num_planes, derived, layer.weight_quantizer.midrise
            )
    return with_aliases(weights, state)


def with_aliases(weights: Mapping[str, StoredWeight], state: ModelState) -> dict[str, StoredWeight]:
    """Give layers that share a weight the same object."""
    return {entry.name: weights[entry.alias_of or entry.name] for entry in state.table.select("quantized")}


def copy_without(network: nn.Module, emptied: Iterable[nn.Module], memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy a network without copying some layers' weights: those are on the meta device in the copy.

    Args:
        network: it stays as it is.
        emptied: layers of it. A weight that another module holds too is copied for that one.
        memo: as `copy.deepcopy` takes it: copies, or what stands for them, by id.
    """
    layers = set(emptied)
    held = [(m, t) for m in network.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    kept = {id(tensor) for module, tensor in held if module not in layers}
    empty = {
        id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False)
        for layer in layers
        for tensors in (layer._parameters, layer._buffers)
        for name, tensor in tensors.items()
        if name in _EMPTIED and tensor is not None and id(tensor) not in kept
    }
    return copy.deepcopy(network, {**(memo or {}), **empty})


def make_integer(network: nn.Module, state: ModelState, weights: Mapping[str, StoredWeight], active: Active) -> None:
    """Change the layers of a network in place into integer layers.

    Args:
        network: a prepared network that is the engine's own.
        state: what is known of it.
        weights: stored weights by layer.
        active: tells the layers which configuration they run.
    """
    tiled: set[StoredWeight] = set()
    for entry in state.table.select("quantized"):
        layer = layer_of(network, entry.name)
        if not isinstance(layer, nn.Embedding):
            tiled.add(weights[entry.name])
        layer.keep_weight_dtype()
        for tensors in (layer._parameters, layer._buffers):
            for name in _EMPTIED:
                tensors.pop(name, None)
        for name in ("bits", "num_planes"):
            layer.__dict__.pop(name, None)
        layer.__class__ = mixed(_mixin(layer), type(layer))  # pyright: ignore[reportAttributeAccessIssue]
        layer.__dict__.update(stored=weights[entry.name], layer_name=entry.name, active=active)
        _fix_scales(layer)
    for weight in tiled:
        weight.derived.expected += tiles_bytes(weight.num_rows, weight.num_columns)
    for entry in state.table.select("per-width"):
        norm = network.get_submodule(entry.name)
        norm.__dict__.pop("key", None)
        norm.__class__ = mixed(FollowingNorm, type(norm))
        norm.__dict__.update(layer_name=entry.name, active=active)
    network.__dict__.pop("_bitswitch", None)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.eval()


def _mixin(layer: SwitchableLayer) -> type[IntegerLayer]:
    if isinstance(layer, nn.Embedding):
        return IntegerEmbedding
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return IntegerConvTranspose
    if isinstance(layer, nn.modules.conv._ConvNd):
        return IntegerConv
    return IntegerLinear


def _fix_scales(layer: SwitchableLayer) -> None:
    """Keep one number a scale instead of an origin and a logarithm: scales of groups are many."""
    scale = layer.weight_quantizer.scale
    if scale.parametrization == "log":
        scale.set_(scale.value())
        scale.log = nn.Parameter(
            torch.zeros((), dtype=torch.float32, device="cpu").expand(scale.log.shape), requires_grad=False
        )
