"""The affine map after the integer sums of a layer: scales, bias and BatchNorm in one multiplier and one bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.quantizers.activation import ActivationQuantizer


@torch.no_grad()
def fold(
    layer: SwitchableLayer,
    bits: int,
    norm: nn.Module | None = None,
    norm_key: str | None = None,
    *,
    input_scale: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return m and b of y = Σ_g float(acc_g)·m[n, g] + b[n], computed in float64.

    m = s_x·s_w·2^Δ·γ/√(σ² + ε) and b = (bias − μ)·γ/√(σ² + ε) + β; without a BatchNorm, m = s_x·s_w·2^Δ and b = bias.
    Sums at a mid-rise width count half steps of the weight, so that 2^(Δ−1) stands for 2^Δ.

    Args:
        layer: a layer with a shared weight scale.
        bits: its width l.
        norm: the BatchNorm that follows it, or None.
        norm_key: which of its normalisations, for a per-width BatchNorm.
        input_scale: whether m contains the scale s_x of the input; without, codes were scaled by row.

    Returns:
        float32 m (out, groups) and float32 b (out,), or None for b = 0.
    """
    quantizer = layer.weight_quantizer
    shift = quantizer.code_bits(bits) - bits - (bits in quantizer.midrise)
    scale = quantizer.scale_for(bits).value().double() * 2.0**shift
    if input_scale and layer.input_quantizer is not None:
        scale = scale * layer.input_quantizer.scale_for(bits).value().double()
    multiplier = scale.reshape(-1, 1).expand(layer.num_outputs, 1) if scale.dim() < 2 else scale
    bias: Any = layer.bias
    if norm is not None:
        factor, shift = normalisation(norm, norm_key)
        multiplier = multiplier * factor[:, None]
        bias = shift if bias is None else bias.double() * factor + shift
    # Without a BatchNorm the bias is the layer's own, not a copy.
    return multiplier.float().contiguous(), None if bias is None else bias.detach().float().contiguous()


def normalisation(norm: nn.Module, norm_key: str | None) -> tuple[Tensor, Tensor]:
    """Return the float64 factor γ/√(σ² + ε) and shift β − μ·factor of a BatchNorm in evaluation mode."""
    chosen: Any = norm
    if isinstance(norm, PerWidthNorm):
        assert norm_key is not None
        chosen = norm.norms[norm_key]
    factor = (chosen.running_var.double() + chosen.eps).rsqrt()
    if chosen.weight is not None:
        factor = factor * chosen.weight.double()
    shift = -chosen.running_mean.double() * factor
    return factor, shift if chosen.bias is None else shift + chosen.bias.double()


def input_numbers(quantizer: ActivationQuantizer, bits: int) -> tuple[float, int]:
    """Return the scale of an input's codes at a width, and the code that stands for zero."""
    zero_point = quantizer.zero_point_for(bits)
    return float(quantizer.scale_for(bits).value()), 0 if zero_point is None else int(zero_point.value())
