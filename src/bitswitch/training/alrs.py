"""Adaptive Learning Rate Scaling, Eq. (6)–(7) of arXiv:2502.01199.

The scale gradients of the lowest widths are an order of magnitude larger than those of the others. ALRS therefore gives
every width a learning rate of its own for the quantization scales, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from bitswitch.errors import ConfigError, PrecisionError

Form = Literal["factor", "printed"]
FORMS: tuple[Form, ...] = get_args(Form)


def eta(stored_bits: int, bits: int) -> float:
    """Return η_b of Eq. (7): 10^(−Δ/2) for even Δ = h − b, 5·10^(−(Δ+1)/2) for odd Δ.

    Args:
        stored_bits: the stored width h of the layer.
        bits: the width b ≤ h that it runs at.

    Raises:
        PrecisionError: `bits` exceeds `stored_bits`.

    >>> [eta(8, b) for b in (8, 6, 4, 2)], [eta(4, b) for b in (4, 3, 2)]
    ([1.0, 0.1, 0.01, 0.001], [1.0, 0.5, 0.1])
    """
    shift = stored_bits - bits
    if shift < 0:
        raise PrecisionError(f"a layer that stores {stored_bits} bits has no learning rate for {bits} bits")
    # Quotients of integers are correctly rounded, so these are the decimal fractions themselves.
    return 5 / 10 ** ((shift + 1) // 2) if shift % 2 else 1 / 10 ** (shift // 2)


def largest(gradients: Iterable[Tensor]) -> Tensor:
    """Return max|∇s^i| of every layer as a float32 vector of length L, without waiting for the device.

    Args:
        gradients: gradients with respect to the raw scales, one tensor of any shape a layer.

    Raises:
        ConfigError: there are none.
    """
    # A per-tensor scale is a number; reducing it would be a kernel a layer for nothing.
    maxima = [g if g.dim() == 0 else torch.linalg.vector_norm(g, ord=torch.inf) for g in gradients]
    if not maxima:
        raise ConfigError("no weight scale received a gradient; did the loss depend on any quantized layer?")
    return torch.stack(maxima).float().abs()


def damping(maxima: Tensor) -> Tensor:
    """Return the gradient term of Eq. (6), mean_i min(max|clip(∇s^i, 1)|, 1), in 0 … 1; NaN if a gradient is NaN.

    Args:
        maxima: max|∇s^i| of every layer, shape (L,). Clipping by value at 1 and then taking the maximum is the same as
            limiting the maximum to 1.
    """
    return maxima.clamp(max=1.0).mean()


Number = TypeVar("Number", float, Tensor)


def scaled(base_lr: float, eta: float, damping: Number, form: Form = "factor") -> Number:
    """Return λ_b of Eq. (6) for a known gradient term, as a number or, without waiting for the device, as a tensor.

    The equation as printed, η_b · (λ − damping), is negative almost always, since λ is around 5e-4 and the gradient
    term reaches 0.4. Its min(·, 1) shows that a factor in 0 … 1 is meant, which is the default here.

    Args:
        base_lr: the current base learning rate λ ≥ 0.
        eta: η_b of Eq. (7).
        damping: the gradient term, in 0 … 1.
        form: "factor" for η_b · λ · (1 − damping), "printed" for max(0, η_b · (λ − damping)).

    Raises:
        ConfigError: another form.

    >>> scaled(0.01, 0.1, 0.25), scaled(0.01, 0.1, 0.25, "printed")
    (0.00075, 0.0)
    """
    if form == "factor":
        return eta * base_lr * (1.0 - damping)
    if form == "printed":
        rate = eta * (base_lr - damping)
        return rate.clamp(min=0.0) if isinstance(rate, Tensor) else max(0.0, rate)
    raise ConfigError(f"the form of Eq. (6) must be one of {FORMS}; got {form!r}")


def learning_rate(base_lr: float, eta: float, gradients: Iterable[Tensor], form: Form = "factor") -> float:
    """Return the learning rate λ_b of the quantization scales of one width, Eq. (6).

    Args:
        base_lr: the current base learning rate λ.
        eta: η_b of Eq. (7), see `eta`.
        gradients: ∇s_b^i, the gradient with respect to the raw scale of every layer i (`PositiveScale.raw_grad`).
        form: "factor" (ours) or "printed" (floored at 0), see `scaled`.

    >>> round(learning_rate(0.01, 0.1, [torch.tensor(0.5), torch.tensor([0.1, -7.0])]), 8)
    0.00025
    """
    return scaled(base_lr, eta, float(damping(largest(gradients))), form)
