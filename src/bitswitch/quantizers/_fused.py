"""The compiled quantizers on tensors: forward and backward in one pass over memory each.

Every function here equals the plain PyTorch formulas of `_reference.py`: outputs and the gradients of
weights and inputs bit for bit, the gradients of scales up to the order of a sum (this one is formed in double
precision, in an order that does not depend on the number of threads).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitswitch import kernels
from bitswitch.quantizers.scales import scale_of

TYPES = {torch.float32: 0, torch.bfloat16: 1}

_PLAIN = (Tensor, nn.Parameter)


def usable(x: Tensor, *learned: Tensor | None) -> bool:
    """Whether kernels can run: all tensors plain and on the CPU, of types that they read, nobody records operations.

    Args:
        x: weight or input, float32 or bfloat16.
        learned: its scale, or what the scale is formed from, and its zero point, if it has one; float32.
    """
    return (
        not torch.compiler.is_compiling()
        and kernels.native is not None
        and x.dtype in TYPES
        and _is_readable(x)
        and all(t is None or (t.dtype == torch.float32 and _is_readable(t)) for t in learned)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


def _is_readable(x: Tensor) -> bool:
    return x.is_cpu and type(x) in _PLAIN


class WeightConfig(NamedTuple):
    """What does not change between steps.

    Attributes:
        stored_bits: the stored width h.
        bits: the width l.
        gain: factor of the scale's gradient.
        dtype: type of the output.
        midrise: whether the levels of l bits are (c + ½) · s_l.
    """

    stored_bits: int
    bits: int
    gain: float
    dtype: torch.dtype
    midrise: bool = False


def _value_of(parameter: Tensor, origin: Tensor | None) -> Tensor:
    """Return the scale that `PositiveScale.learned` stands for, contiguous."""
    return (parameter if origin is None else scale_of(parameter, origin)).contiguous()


def _like(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `x` and an empty tensor, both dense in memory and in the same order; `x` is copied only if it has gaps."""
    empty = torch.empty_like(x, dtype=dtype)
    if empty.stride() == x.stride():
        return x, empty
    x = x.contiguous()
    return x, torch.empty_like(x, dtype=dtype)


def _rows_like(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Like `_like`, with the weights of every scale next to each other and in the order of the scales."""
    dim = scale.dim()
    outermost = dim == 1 and weight.stride(0) * weight.shape[0] == weight.numel()
    return _like(weight if dim == 0 or outermost else weight.contiguous(), dtype)


def _ordered_like(grad: Tensor, x: Tensor) -> Tensor:
    """Return `grad` in the memory order of `x`, which is dense; a copy only where the orders differ."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x, dtype=grad.dtype).copy_(grad)


def weight_forward(weight: Tensor, scale: Tensor, config: WeightConfig) -> tuple[Tensor, Tensor]:
    """Return the weight as it was read (a copy if it had gaps) and the quantized weight.

    Args:
        weight: out-first weight.
        scale: float32, contiguous; consecutive weights share an element of it.
        config: widths and the output's type.
    """
    weight, out = _rows_like(weight, scale, config.dtype)
    rows = scale.numel()
    kernels.native.quantize_weight_forward(  # pyright: ignore[reportOptionalMemberAccess]
        weight.data_ptr(),
        scale.data_ptr(),
        out.data_ptr(),
        rows,
        weight.numel() // rows if rows else 0,
        TYPES[weight.dtype],
        TYPES[config.dtype],
        config.stored_bits,
        config.bits,
        config.midrise,
    )
    return weight, out


def weight_backward(
    grad: Tensor, weight: Tensor, scale: Tensor, config: WeightConfig, log: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight, as `weight_forward` read it, and of the scale (or of its logarithm)."""
    grad = _ordered_like(grad, weight)
    grad_weight = torch.empty_like(weight)
    grad_scale = torch.empty_like(scale)
    rows = scale.numel()
    kernels.native.quantize_weight_backward(  # pyright: ignore[reportOptionalMemberAccess]
        weight.data_ptr(),
        scale.data_ptr(),
        grad.data_ptr(),
        grad_weight.data_ptr(),
        grad_scale.data_ptr(),
        rows,
        weight.numel() // rows if rows else 0,
        TYPES[weight.dtype],
        TYPES[grad.dtype],
        config.stored_bits,
        config.bits,
        config.midrise,
        config.gain,
        log,
    )
    return grad_weight, grad_scale


def input_forward(x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int) -> tuple[Tensor, Tensor]:
    """Return the input as it was read (a copy if it had gaps) and the quantized input, of the type of `x`."""
    x, out = _like(x, x.dtype)
    kind = TYPES[x.dtype]
    kernels.native.quantize_input_forward(  # pyright: ignore[reportOptionalMemberAccess]
        x.data_ptr(),
        scale.data_ptr(),
        0 if zero_point is None else zero_point.data_ptr(),
        out.data_ptr(),
        x.numel(),
        kind,
        kind,
        top,
    )
    return x, out


def input_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int, gain: float, log: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of the input, of the scale (or of its logarithm) and of the zero point, if there is one."""
    grad = _ordered_like(grad, x)
    grad_x = torch.empty_like(x)
    grad_scale = torch.empty_like(scale)
    grad_zero_point = None if zero_point is None else torch.empty_like(zero_point)
    kernels.native.quantize_input_backward(  # pyright: ignore[reportOptionalMemberAccess]
        x.data_ptr(),
        scale.data_ptr(),
        0 if zero_point is None else zero_point.data_ptr(),
        grad.data_ptr(),
        grad_x.data_ptr(),
        grad_scale.data_ptr(),
        0 if grad_zero_point is None else grad_zero_point.data_ptr(),
        x.numel(),
        TYPES[x.dtype],
        TYPES[grad.dtype],
        top,
        gain,
        log,
    )
    return grad_x, grad_scale, grad_zero_point


class FusedWeight(torch.autograd.Function):
    """Double Rounding of a weight, Eq. (1)–(3) and (13), by the compiled kernels.

    The scale is formed inside, so that the graph has one node a weight and keeps nothing but the weight itself.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, parameter: Tensor, origin: Tensor | None, config: WeightConfig) -> Tensor:
        scale = _value_of(parameter, origin)
        read, out = weight_forward(weight, scale, config)
        ctx.save_for_backward(read, scale)
        ctx.config, ctx.log = config, origin is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the signature)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return *weight_backward(grads[0], weight, scale, ctx.config, ctx.log), None, None


class FusedInput(torch.autograd.Function):
    """Quantization of an input, Eq. (4)–(5) and (13)–(14), by the compiled kernels; keeps nothing but the input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        parameter: Tensor,
        origin: Tensor | None,
        zero_point: Tensor | None,
        top: int,
        gain: float,
    ) -> Tensor:
        scale = _value_of(parameter, origin)
        read, out = input_forward(x, scale, zero_point, top)
        ctx.save_for_backward(read, scale, zero_point)
        ctx.config = top, gain, origin is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the signature)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None, Tensor | None, None, None]:
        x, scale, zero_point = ctx.saved_tensors
        top, gain, log = ctx.config
        grad_x, grad_scale, grad_zero_point = input_backward(grads[0], x, scale, zero_point, top, gain, log)
        return grad_x, grad_scale, None, grad_zero_point, None, None
