"""The quantizers of training in plain PyTorch: what the compiled kernels equal, and what runs where there are none.

The gradient of a scale needs no pass of its own over the data: with y the quantized tensor, x the input and
g_x = g · [n < v < p] the gradient that reaches it, Σ g·(code − v) over the inside and Σ g·n or Σ g·p over the outside
are together (Σ g·y − Σ g_x·x) / s. Under torch.compile all of it is pointwise work and sums, which a compiler fuses
with the normalisation and the activation around it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitswitch.rounding import dequantize, double_round, int_range


def _contract(a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """Return Σ a·b over the elements that share one scale of `shape`, in float32."""
    if len(shape) == 0 and not torch.compiler.is_compiling():
        # One pass over memory for a scalar scale, which is the case that training spends its time on.
        if a.is_contiguous() and b.is_contiguous():
            return torch.dot(a.view(-1), b.view(-1))
        if a.dim() == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in (a, b)):
            return torch.dot(a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1))
    return torch.mul(a, b).sum_to_size(shape)


def weight_forward(weight: Tensor, scale: Tensor, stored_bits: int, bits: int) -> Tensor:
    """Return Ŵ of Eq. (3): the weight at `bits` bits, float32; the scale has the stored width and broadcasts to it."""
    return dequantize(double_round(weight, scale, stored_bits, bits), scale, stored_bits, bits)


def weight_backward(
    grad: Tensor, weight: Tensor, scale: Tensor, quantized: Tensor, stored_bits: int, bits: int, gain: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and scale, Eq. (13).

    Args:
        grad: gradient of the quantized weight.
        weight: the weight, of any floating-point type.
        scale: float32 scale of the stored width.
        quantized: the float32 result of `weight_forward`.
        stored_bits: the stored width h.
        bits: the width l.
        gain: factor of the scale's gradient.
    """
    n, p = int_range(bits)
    grad = grad.float()
    position = weight.float() / (scale * 2.0 ** (stored_bits - bits))
    inside = torch.ops.aten.hardtanh_backward(grad, position, n, p)
    # Ŵ = code · 2^Δ · s. Positions outside are multiplied by 0, which must not meet an infinite one.
    of_codes = _contract(grad, quantized, scale.shape) / scale
    of_positions = _contract(inside, position.clamp_(n, p), scale.shape) * 2.0 ** (stored_bits - bits)
    return inside.to(weight.dtype), (of_codes - of_positions) * gain


class ReferenceWeight(torch.autograd.Function):
    """Double Rounding of a weight, Eq. (1)–(3) and (13), with a scale that broadcasts to it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, stored_bits: int, bits: int, gain: float) -> Tensor:
        quantized = weight_forward(weight, scale, stored_bits, bits)
        ctx.save_for_backward(weight, scale, quantized)
        ctx.config = stored_bits, bits, gain
        return quantized

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the signature)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        return *weight_backward(grads[0], *ctx.saved_tensors, *ctx.config), None, None, None


def input_codes(x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int) -> Tensor:
    """Return the codes 0 … top of Eq. (4), integer-valued float32."""
    codes = (x.float() / scale).round_()
    if zero_point is not None:
        codes.add_(zero_point)
    return codes.clamp_(0, top)


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int) -> Tensor:
    """Return code − zp: the multiple of the scale that each element is quantized to."""
    codes = input_codes(x, scale, zero_point, top)
    return codes if zero_point is None else codes.sub_(zero_point)


def input_forward(x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int) -> Tensor:
    """Return X̂ of Eq. (5), of the type of `x`."""
    return _steps(x, scale, zero_point, top).mul_(scale).to(x.dtype)


def input_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    quantized: Tensor | None,
    top: int,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of input, scale and zero point, Eq. (13)–(14).

    Args:
        grad: gradient of the quantized input.
        x: the input.
        scale: float32 scalar.
        zero_point: float32 scalar or None.
        quantized: the float32 result of `input_forward` if it is there; a half-precision one is too coarse to take the
            scale's gradient from, so the codes are then computed again.
        top: the largest code.
        gain: factor of the scale's gradient.
    """
    grad = grad.float()
    position = x.float() / scale
    if zero_point is not None:
        position += zero_point
    inside = torch.ops.aten.hardtanh_backward(grad, position, 0, top)
    if quantized is None:
        of_codes = _contract(grad, _steps(x, scale, zero_point, top), scale.shape)
    else:
        of_codes = _contract(grad, quantized, scale.shape) / scale
    # As for weights, clamping spares 0 · ∞.
    grad_scale = of_codes - _contract(inside, position.clamp_(0, top), scale.shape)
    grad_zero_point = None
    if zero_point is not None:
        passed = inside.sum()
        grad_scale = grad_scale + zero_point * passed
        grad_zero_point = (passed - grad.sum()) * scale
    return inside.to(x.dtype), grad_scale * gain, grad_zero_point


class ReferenceInput(torch.autograd.Function):
    """Quantization of an input, Eq. (4)–(5) and (13)–(14), with a scalar scale and an integer-valued zero point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int, gain: float) -> Tensor:
        quantized = input_forward(x, scale, zero_point, top)
        ctx.save_for_backward(x, scale, zero_point, quantized if x.dtype == torch.float32 else None)
        ctx.config = top, gain
        return quantized

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the signature)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        return *input_backward(grads[0], *ctx.saved_tensors, *ctx.config), None, None
