"""Learned scales and zero points: what they are, and how they are stored exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Parametrization = Literal["log", "raw"]

# Only the comparison with raw scales can reach it: a scale that an optimizer step has driven to zero or below.
_SMALLEST_RAW_SCALE = 1e-8


def scale_of(log: Tensor, origin: Tensor) -> Tensor:
    """Return s = origin · exp(log), float32, of the shape of both."""
    return origin * log.exp()


# A compiler that fused the exponential could round it otherwise, and integer codes depend on every bit of a scale: to
# torch.compile it is an operator of its own.
_library = torch.library.Library("bitswitch", "FRAGMENT")
_library.define("scale_of(Tensor log, Tensor origin) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("scale_of", scale_of, "CompositeExplicitAutograd")


def _keep_scale(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _scale_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (scale,) = ctx.saved_tensors
    return grad * scale, None


torch.library.register_fake("bitswitch::scale_of", lambda log, origin: torch.empty_like(log), lib=_library)
torch.library.register_autograd("bitswitch::scale_of", _scale_gradient, setup_context=_keep_scale, lib=_library)


class _Clamp(torch.autograd.Function):
    """Clamp a learned value to [low, high]; only gradients that would push it further out are stopped.

    A plain clamp has no gradient at a bound or beyond it, so that what starts there, or is moved there by a step, would
    never be learned again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        (grad,) = grads
        outward = ((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0))
        return grad.masked_fill(outward, 0.0), None, None


class _KeepsFloat32(nn.Module):
    """A module whose tensors stay float32 when the network is cast or takes a state of another type.

    Integer codes depend on every bit of a scale, and compiled kernels read float32.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # With assign=True the tensors of a state take the place of the module's own, whatever their type is.
        for name, value in state_dict.items():
            if name.startswith(prefix) and isinstance(value, Tensor) and value.dtype != torch.float32:
                state_dict[name] = value.detach().float()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class PositiveScale(_KeepsFloat32):
    """A learned scale that stays positive and that is stored exactly.

    With the parametrization "log" the scale is s = origin · exp(log): an optimizer step of λ changes it by the factor
    exp(±λ), whatever its size, and it never crosses zero. With "raw", s = raw is learned directly, which is the paper's
    form and kept for comparison; `value` is never below 1e-8, from where later steps can raise it again. In both,
    `set_` reproduces a scale bit for bit.

    Args:
        shape: shape of the scale; it is NaN until set.
        parametrization: "log" or "raw".
    """

    origin: Tensor

    def __init__(self, shape: Sequence[int] = (), parametrization: Parametrization = "log") -> None:
        super().__init__()
        self.parametrization: Parametrization = parametrization
        unset = torch.full(tuple(shape), math.nan, dtype=torch.float32)
        if parametrization == "log":
            self.register_buffer("origin", unset)
            self.log = nn.Parameter(torch.zeros_like(unset))
        else:
            self.raw = nn.Parameter(unset)

    @property
    def parameter(self) -> nn.Parameter:
        """The learned parameter: `log` or `raw`."""
        return self.log if self.parametrization == "log" else self.raw

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The tensors that the scale is formed from: (log, origin) or (raw,)."""
        return (self.log, self.origin) if self.parametrization == "log" else (self.raw,)

    @property
    def is_set(self) -> bool:
        """Whether a scale has been set; reads the tensor, so it waits for the device."""
        scale = self.origin if self.parametrization == "log" else self.raw
        return all(math.isfinite(extreme.item()) for extreme in scale.detach().aminmax())

    def value(self) -> Tensor:
        """Return the scale s > 0, float32, differentiable."""
        if self.parametrization == "log":
            opaque = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
            return (torch.ops.bitswitch.scale_of if opaque else scale_of)(self.log, self.origin)
        return _Clamp.apply(self.raw, _SMALLEST_RAW_SCALE, math.inf)  # pyright: ignore[reportReturnType]

    def learned(self) -> tuple[Tensor, Tensor | None]:
        """Return what fused quantizers form the scale from: (log, origin), or (the scale itself, None)."""
        return (self.log, self.origin) if self.parametrization == "log" else (self.value(), None)

    @torch.no_grad()
    def set_(self, scale: Tensor) -> None:
        """Set the scale to `scale` exactly."""
        if self.parametrization == "log":
            self.origin.copy_(scale)
            self.log.zero_()
        else:
            self.raw.copy_(scale)

    @torch.no_grad()
    def raw_grad(self) -> Tensor | None:
        """Return the gradient with respect to s itself (the ∇s of Eq. (6)), or None if there is none."""
        grad = self.parameter.grad
        if grad is None or self.parametrization == "raw":
            return grad
        return grad / self.value()

    def extra_repr(self) -> str:  # noqa: D102
        return f"{tuple(self.parameter.shape)}, {self.parametrization}"


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class ZeroPoint(_KeepsFloat32):
    """A learned integer zero point in 0 … top, with a straight-through gradient: at either end it can only come back.

    The parameter `shift` is a fraction of the code range, zp = clip(round(origin + top · shift), 0, top), so that an
    optimizer step moves the zero point of every width by the same share of its range.

    Args:
        top: the largest code, 2^b − 1.
    """

    origin: Tensor

    def __init__(self, top: int) -> None:
        super().__init__()
        self.top = top
        self.register_buffer("origin", torch.zeros((), dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float32))

    def value(self) -> Tensor:
        """Return the integer-valued zero point as a float32 scalar, differentiable."""
        moved = _Clamp.apply(self.origin + self.top * self.shift, 0, self.top)
        return _RoundStraightThrough.apply(moved)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def set_(self, zero_point: Tensor | float) -> None:
        """Set the zero point to an integer value exactly."""
        self.origin.fill_(float(zero_point))
        self.shift.zero_()
