"""What a plan computes with at one precision: weights, affine maps, quantizers, and modules that PyTorch runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.runtime.affine import fold, input_numbers, normalisation
from bitswitch.runtime.conv_kernels import PackedConv, pack_conv_planes
from bitswitch.runtime.conv_reference import Quantizer
from bitswitch.runtime.graph.nodes import ConvNode, FloatConvNode, LinearNode
from bitswitch.runtime.graph.plan import Plan
from bitswitch.runtime.graph.purity import has_hooks
from bitswitch.runtime.stored import StoredWeight


@dataclass(frozen=True, eq=False)
class LayerOperands:
    """An integer layer at one width.

    Attributes:
        weights: its stored weight.
        bits: the width.
        multiplier: float32 (out, groups).
        bias: float32 (out,), or None.
        group_size: inputs that share a multiplier, or 0.
        quantizer: of its input.
        packed: the weight as convolution kernels take it; None for linear layers, or without kernels.
    """

    weights: StoredWeight
    bits: int
    multiplier: Tensor
    bias: Tensor | None
    group_size: int
    quantizer: Quantizer
    packed: PackedConv | None


@dataclass(frozen=True, eq=False)
class FloatOperands:
    """A float convolution with a BatchNorm in its weight and bias."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Bound:
    """A plan's operands at one precision.

    Attributes:
        operands: by the names of the layer and of its BatchNorm.
        modules: by name, what runs in place of the modules that the graph calls.
    """

    operands: dict[tuple[str, str | None], LayerOperands | FloatOperands]
    modules: Mapping[str, Callable[..., Any]]


@torch.no_grad()
def input_quantizer(layer: SwitchableLayer, bits: int) -> Quantizer:
    """Return the quantizer of a layer's input at a width, as numbers."""
    quantizer = layer.input_quantizer
    assert quantizer is not None
    return Quantizer(*input_numbers(quantizer, bits), quantizer.top(bits))


class Binder:
    """Bind plans of one network to precisions.

    Args:
        network: the prepared network.
        called: names of all modules that its graph calls.
        weights: stored weights by layer.
        with_kernels: prepare for the compiled kernels too, not for the references only.
    """

    def __init__(
        self, network: nn.Module, called: Iterable[str], weights: Mapping[str, StoredWeight], *, with_kernels: bool
    ) -> None:
        self.modules = dict(network.named_modules())
        self.called, self.weights, self.with_kernels = frozenset(called), weights, with_kernels

    def bind(self, plan: Plan, widths: Mapping[str, int], norm_keys: Mapping[str, str]) -> Bound:
        """Return the operands of a plan.

        Args:
            plan: the plan of the network.
            widths: the width of every quantized layer.
            norm_keys: which normalisation every per-width BatchNorm runs.
        """
        operands: dict[tuple[str, str | None], LayerOperands | FloatOperands] = {}
        modules = {name: _pure(_of_width(self.modules[name], norm_keys.get(name))) for name in self.called}
        for node in plan.nodes:
            if isinstance(node, (ConvNode, LinearNode)):
                operands[node.layer, node.norm] = self._layer(node, widths[node.layer], norm_keys)
            elif isinstance(node, FloatConvNode):
                operands[node.layer, node.norm] = self._float(node, norm_keys.get(node.norm))
        return Bound(operands, modules)

    def _layer(self, node: ConvNode | LinearNode, bits: int, norm_keys: Mapping[str, str]) -> LayerOperands:
        layer: Any = self.modules[node.layer]
        weights = self.weights[node.layer]
        norm = None if node.norm is None else self.modules[node.norm]
        norm_key = None if node.norm is None else norm_keys.get(node.norm)
        # Keys of the cache begin with what an item is, and what it is made of.
        multiplier, bias, quantizer = weights.derived.get(
            ("folded", node.layer, bits, node.norm, norm_key),
            lambda: (*fold(layer, bits, norm, norm_key), input_quantizer(layer, bits)),
            lambda item: sum(4 * part.numel() for part in item[:2] if part is not None),
        )
        is_conv = isinstance(node, ConvNode)
        packed = _packed(weights, bits, layer.groups) if is_conv and self.with_kernels else None
        group_size = layer.weight_quantizer.group_size or 0
        return LayerOperands(weights, bits, multiplier, bias, group_size, quantizer, packed)

    @torch.no_grad()
    def _float(self, node: FloatConvNode, norm_key: str | None) -> FloatOperands:
        """Fold a BatchNorm into a float convolution's weight and bias, in float64."""
        conv: Any = self.modules[node.layer]
        factor, shift = normalisation(self.modules[node.norm], norm_key)
        weight = (conv.weight.double() * factor.reshape(-1, 1, 1, 1)).float()
        bias = shift if conv.bias is None else conv.bias.double() * factor + shift
        return FloatOperands(weight.contiguous(memory_format=torch.channels_last), bias.float())


def _packed(weights: StoredWeight, bits: int, groups: int) -> PackedConv:
    """Return a weight as convolution kernels take it, from the cache if it is there."""
    out_channels, channels, height, width = weights.shape

    def build() -> PackedConv:
        shape = (out_channels, channels, height, width)
        return pack_conv_planes(weights.planes(bits), shape, groups, **weights.form(bits))

    return weights.derived.get(("packed", weights.name, bits, groups), build, _bytes_of)


def _bytes_of(packed: PackedConv) -> int:
    return packed.data.numel() + 4 * packed.row_sums.numel()


def _of_width(module: nn.Module, norm_key: str | None) -> nn.Module:
    # With hooks, it has to be called itself.
    if isinstance(module, PerWidthNorm) and norm_key is not None and not has_hooks(module):
        return module.norms[norm_key]
    return module


def _pure(module: nn.Module) -> nn.Module:
    """Return a module that does not change its input."""
    if not getattr(module, "inplace", False):
        return module
    pure = copy.copy(module)
    pure.inplace = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return pure
