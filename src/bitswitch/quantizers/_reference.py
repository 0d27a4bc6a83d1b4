"""The quantizers of training in plain PyTorch: what the compiled kernels equal, and what runs where there are none.

Under torch.compile all of it is pointwise work and sums, which a compiler fuses with the normalisation and the
activation around it. Only the inputs are kept for the backward pass: to round them again is cheaper than to read more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitswitch.rounding import dequantize, double_round, int_range


def _contract(a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """Return Σ a·b over the elements that share one scale of `shape`, in float32."""
    if len(shape) == 0:
        # One pass over memory for a scalar scale, which is the case that training spends its time on.
        if a.is_contiguous() and b.is_contiguous():
            return torch.dot(a.view(-1), b.view(-1))
        if a.dim() == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in (a, b)):
            return torch.dot(a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1))
    return torch.mul(a, b).sum_to_size(shape)


def _scale_gradient(grad: Tensor, codes: Tensor, inside: Tensor, position: Tensor, shape: torch.Size) -> Tensor:
    """Return Σ g·code − Σ g_x·v over the elements that share a scale, with g_x = g inside the range and 0 outside."""
    if torch.compiler.is_compiling():
        # One sum, whose terms a compiler fuses with what produces them.
        return (grad * codes - inside * position).sum_to_size(shape)
    return _contract(grad, codes, shape) - _contract(inside, position, shape)


def weight_forward(weight: Tensor, scale: Tensor, stored_bits: int, bits: int, midrise: tuple[int, ...] = ()) -> Tensor:
    """Return Ŵ of Eq. (3): the weight at `bits` bits, float32; the scale has the stored width and broadcasts to it."""
    codes = double_round(weight, scale, stored_bits, bits, midrise)
    return dequantize(codes, scale, stored_bits, bits, midrise)


def weight_backward(
    grad: Tensor,
    weight: Tensor,
    scale: Tensor,
    stored_bits: int,
    bits: int,
    gain: float,
    midrise: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and scale, Eq. (13).

    Args:
        grad: gradient of the quantized weight.
        weight: the weight, of any floating-point type.
        scale: float32 scale of the stored width, which broadcasts to the weight.
        stored_bits: the stored width h.
        bits: the width l.
        gain: factor of the scale's gradient.
        midrise: widths whose levels are (c + ½) · s.
    """
    n, p = int_range(bits)
    if bits in midrise:
        # Codes are floors: the cell of the highest one ends at −n.
        p = -n
    step = 2.0 ** (stored_bits - bits)
    grad = grad.float()
    position = weight.float() / (scale * step)
    inside = torch.ops.aten.hardtanh_backward(grad, position, n, p)
    codes = double_round(weight, scale, stored_bits, bits, midrise)
    if bits in midrise:
        codes = codes + 0.5
    # Ŵ = code · 2^Δ · s. Positions outside are multiplied by 0, which must not meet an infinite one.
    total = _scale_gradient(grad, codes, inside, position.clamp_(n, p), scale.shape)
    return inside.to(weight.dtype), total * (step * gain)


class ReferenceWeight(torch.autograd.Function):
    """Double Rounding of a weight, Eq. (1)–(3) and (13), with a scale that broadcasts to it."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, stored_bits: int, bits: int, gain: float, midrise: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.config = stored_bits, bits, gain, midrise
        return weight_forward(weight, scale, stored_bits, bits, midrise)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the signature)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None]:
        return *weight_backward(grads[0], *ctx.saved_tensors, *ctx.config), None, None, None, None


def _steps(quotient: Tensor, zero_point: Tensor | None, top: int) -> Tensor:
    """Return code − zp, the multiple of the scale that each element is quantized to, given x / s."""
    codes = quotient.round()
    if zero_point is None:
        return codes.clamp_(0, top)
    return codes.add_(zero_point).clamp_(0, top).sub_(zero_point)


def input_codes(x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int) -> Tensor:
    """Return the codes 0 … top of Eq. (4), integer-valued float32."""
    steps = _steps(x.float() / scale, zero_point, top)
    return steps if zero_point is None else steps.add_(zero_point)


def input_forward(x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int) -> Tensor:
    """Return X̂ of Eq. (5), of the type of `x`."""
    return _steps(x.float() / scale, zero_point, top).mul_(scale).to(x.dtype)


def input_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int, gain: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of input, scale and zero point, Eq. (13)–(14).

    Args:
        grad: gradient of the quantized input.
        x: the input, of any floating-point type.
        scale: float32 scalar.
        zero_point: float32 scalar or None.
        top: the largest code.
        gain: factor of the scale's gradient.
    """
    grad = grad.float()
    position = x.float() / scale
    steps = _steps(position, zero_point, top)
    if zero_point is not None:
        position += zero_point
    inside = torch.ops.aten.hardtanh_backward(grad, position, 0, top)
    # As for weights, clamping spares 0 · ∞.
    position.clamp_(0, top)
    grad_zero_point = None
    if zero_point is not None:
        position -= zero_point
        grad_zero_point = (inside.sum() - grad.sum()) * scale
    grad_scale = _scale_gradient(grad, steps, inside, position, scale.shape)
    return inside.to(x.dtype), grad_scale * gain, grad_zero_point


class ReferenceInput(torch.autograd.Function):
    """Quantization of an input, Eq. (4)–(5) and (13)–(14), with a scalar scale and an integer-valued zero point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int, gain: float) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.config = top, gain
        return input_forward(x, scale, zero_point, top)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the signature)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        return *input_backward(grads[0], *ctx.saved_tensors, *ctx.config), None, None
