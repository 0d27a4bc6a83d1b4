"""First values of scales: the minimisers of the quantization error over a grid of candidates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitswitch.errors import PrepareError
from bitswitch.layers.base import SwitchableLayer
from bitswitch.quantizers import WeightQuantizer
from bitswitch.rounding import dequantize, double_round, int_range, uint_range

_NUM_WEIGHT_CANDIDATES = 64
_MAX_WEIGHTS_PER_SCALE = 1 << 16
_NUM_INPUT_CANDIDATES = 48
# What is set where there is nothing to go by; only smaller scales than a normal float32 count as nothing.
_SCALE_OF_ZEROS = 1e-8
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def initialize_weight_scale(layer: SwitchableLayer) -> None:
    """Set the weight scales of a trainable layer to the minimisers of the quantization error.

    A shared scale minimises the sum over all widths of the relative error ‖Ŵ_b − W‖ / ‖W‖. That clips the weights of
    the stored width, so that the codes of the lowest stay alive; `calibrate` corrects what clipping does to BatchNorm.

    Args:
        layer: a trainable layer.

    Raises:
        PrepareError: the weight has NaN or infinite values.
    """
    weight = layer.out_first(layer.weight.detach()).float()
    if not bool(weight.isfinite().all()):
        raise PrepareError("its weight has NaN or infinite values")
    quantizer = layer.weight_quantizer
    blocks = _blocks(weight, quantizer)
    groups = [quantizer.bits] if quantizer.shared else [(b,) for b in quantizer.bits]
    for widths in groups:
        scale = best_weight_scale(blocks, widths, quantizer.midrise)
        quantizer.scale_for(widths[0]).set_(scale.reshape(quantizer.scale_shape))


def _blocks(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """Return the weights that share a scale as the rows of a matrix, thinned out evenly where they are very many."""
    rows = math.prod(quantizer.scale_shape)
    blocks = weight.reshape(rows, -1)
    stride = -(-blocks.shape[1] // _MAX_WEIGHTS_PER_SCALE)
    # An odd stride visits all positions of a kernel.
    return blocks[:, :: stride | 1] if stride > 1 else blocks


def best_weight_scale(blocks: Tensor, bits: tuple[int, ...], midrise: tuple[int, ...] = ()) -> Tensor:
    """Return, for each row, the scale s_h that minimises Σ_b ‖Ŵ_b − W‖ over a grid of candidates.

    Args:
        blocks: float32 matrix (scales, weights).
        bits: candidate widths, descending.
        midrise: those of them whose levels are (c + ½) · s_b.

    Returns:
        float32 tensor (scales,).
    """
    top = blocks.abs().amax(1) / int_range(bits[0])[1]
    # The smallest candidate is a twentieth.
    top = torch.where(top < 20 * _SMALLEST_SCALE, _SCALE_OF_ZEROS, top)
    best_cost = torch.full_like(top, math.inf)
    best = top.clone()
    # From "nothing is clipped" down to a scale at which 2-bit codes reach a fortieth of the largest weight.
    for factor in torch.logspace(math.log10(2.0), math.log10(1 / 20), _NUM_WEIGHT_CANDIDATES).tolist():
        scale = top * factor
        cost = torch.zeros_like(top)
        for b in bits:
            codes = double_round(blocks, scale[:, None], bits[0], b, midrise)
            cost += torch.linalg.vector_norm(dequantize(codes, scale[:, None], bits[0], b, midrise) - blocks, dim=1)
        better = cost < best_cost
        best = torch.where(better, scale, best)
        best_cost = torch.where(better, cost, best_cost)
    return best


def best_input_scale(samples: Tensor, low: float, high: float, bits: int, *, signed: bool) -> tuple[Tensor, float]:
    """Return the activation scale and zero point of one width that minimise the squared error on samples.

    Args:
        samples: 1-d float32 tensor.
        low: the smallest input seen; not positive.
        high: the largest input seen; not negative.
        bits: the width.
        signed: whether a zero point is searched as well; otherwise it is 0.

    Returns:
        (float32 scalar tensor, integer-valued zero point).
    """
    top = uint_range(bits)[1]
    if high - low < _SMALLEST_SCALE * top:
        return samples.new_tensor(1.0 / top), 0.0
    fractions = torch.logspace(0, -1.7, _NUM_INPUT_CANDIDATES if not signed else 20).tolist()
    pairs = [(a, b) for a in (fractions if signed else [0.0]) for b in fractions]
    best, best_cost = (high - low, 0.0), math.inf
    for low_fraction, high_fraction in pairs:
        bottom, ceiling = low * low_fraction, high * high_fraction
        if ceiling - bottom < _SMALLEST_SCALE * top:
            continue
        scale = (ceiling - bottom) / top
        zero_point = float(min(top, max(0, round(-bottom / scale))))
        codes = (samples / scale).round_().add_(zero_point).clamp_(0, top).sub_(zero_point)
        cost = float((codes.mul_(scale) - samples).square_().sum())
        if cost < best_cost:
            best, best_cost = (scale, zero_point), cost
    return samples.new_tensor(best[0]), best[1]
