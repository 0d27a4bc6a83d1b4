"""Quantization by explicit formulas, and single layers made switchable with scales set by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.registry import make_switchable
from bitswitch.quantizers import ActivationQuantizer, WeightQuantizer

BITS = (8, 6, 4, 3, 2)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def out_first(layer: nn.Module, weight: Tensor) -> Tensor:
    """Permute a weight to (output channels, …) one output channel at a time."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        per_group, inputs = weight.shape[1], weight.shape[0] // layer.groups
        rows = [
            weight[group * inputs : (group + 1) * inputs, channel]
            for group in range(layer.groups)
            for channel in range(per_group)
        ]
        return torch.stack(rows)
    if type(layer).__name__.endswith("Conv1D"):
        return torch.stack([weight[:, channel] for channel in range(weight.shape[1])])
    return weight


def in_layout(layer: nn.Module, weight: Tensor) -> Tensor:
    """Undo `out_first`."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        per_group = weight.shape[0] // layer.groups
        groups = [weight[g * per_group : (g + 1) * per_group].transpose(0, 1) for g in range(layer.groups)]
        return torch.cat(groups)
    return weight.t() if type(layer).__name__.endswith("Conv1D") else weight


def scales_of(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """Spread the scales over an out-first weight: one number an element."""
    scale = quantizer.scale.value().detach()
    spread = torch.empty(weight.shape[0], math.prod(weight.shape[1:]))
    for row in range(spread.shape[0]):
        for column in range(spread.shape[1]):
            if quantizer.granularity == "tensor":
                spread[row, column] = scale
            elif quantizer.granularity == "channel":
                spread[row, column] = scale[row]
            else:
                spread[row, column] = scale[row, column // (quantizer.group_size or 1)]
    return spread.view(weight.shape)


def codes_of(weight: Tensor, scales: Tensor, bits: int, stored: int = BITS[0]) -> Tensor:
    """Eq. (1) and (2): round to the stored integers, then shift and round half up."""
    first = torch.round(weight / scales).clamp(-(2 ** (stored - 1)), 2 ** (stored - 1) - 1)
    step = 2 ** (stored - bits)
    return first if step == 1 else torch.floor((first + step / 2) / step).clamp(max=2 ** (bits - 1) - 1)


def weight_of(layer: SwitchableLayer, bits: int) -> Tensor:
    """Eq. (3), in the layout of the layer."""
    weight = out_first(layer, layer.weight.detach())
    scales = scales_of(layer.weight_quantizer, weight)
    return in_layout(layer, codes_of(weight, scales, bits) * (scales * 2.0 ** (BITS[0] - bits)))


def input_of(layer: SwitchableLayer, x: Tensor, bits: int) -> Tensor:
    """Eq. (4) and (5)."""
    quantizer = layer.input_quantizer
    if quantizer is None:
        return x
    scale = quantizer.scale_for(bits).value().detach()
    zero = quantizer.zero_point_for(bits)
    shift = 0.0 if zero is None else float(zero.value().detach())
    return ((torch.round(x / scale) + shift).clamp(0, 2**bits - 1) - shift) * scale


def switchable(
    layer: nn.Module,
    granularity: Any = "tensor",
    group_size: int | None = None,
    signed: bool | None = True,
    seed: int = 0,
) -> Any:
    """Make a layer switchable in place; every scale differs, and some weights and inputs are clipped."""
    weight: Any = layer.weight
    rows = out_first(layer, weight.detach())
    quantizer = WeightQuantizer(tuple(rows.shape), BITS, granularity, group_size)
    scale = (float(weight.detach().abs().max()) / 100) * (1 + 0.3 * seeded(*quantizer.scale_shape, seed=seed).sigmoid())
    quantizer.scale.set_(scale)
    inputs = None
    if signed is not None:
        inputs = ActivationQuantizer(BITS, signed=signed)
        for bits in BITS:
            inputs.set_(bits, torch.tensor(4.3 / (2**bits - 1)), 2 ** (bits - 1) - 1 if signed else None)
    return make_switchable(layer, quantizer, inputs)
