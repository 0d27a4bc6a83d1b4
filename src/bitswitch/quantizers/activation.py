"""The quantizer of activations: a scale and a zero point a width."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitswitch.errors import CalibrationError
from bitswitch.quantizers.scales import Parametrization, PositiveScale, ZeroPoint, contract
from bitswitch.rounding import uint_range


class _QuantizeActivation(torch.autograd.Function):
    """Quantize activations to codes 0 … 2^b−1 and back, with a scalar scale and an integer-valued zero point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int, scale_gain: float) -> Tensor:
        quantized = _steps(x, scale, zero_point, top).mul_(scale).to(x.dtype)
        # A half-precision result is too coarse to take the scale's gradient from; the codes are computed again there.
        kept = quantized if x.dtype == torch.float32 else None
        ctx.save_for_backward(x, scale, zero_point, kept)
        ctx.config = top, scale_gain
        return quantized

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the signature)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        x, scale, zero_point, quantized = ctx.saved_tensors
        top, scale_gain = ctx.config
        grad = grads[0].float()
        position = x.float() / scale
        if zero_point is not None:
            position += zero_point
        grad_x = torch.ops.aten.hardtanh_backward(grad, position, 0, top)
        if quantized is None:
            per_step = contract(grad, _steps(x, scale, zero_point, top), scale.shape)
        else:
            per_step = contract(grad, quantized, scale.shape) / scale
        grad_scale = per_step - contract(grad_x, position, scale.shape)
        grad_zero_point = None
        if zero_point is not None:
            inside = grad_x.sum()
            grad_scale = grad_scale + zero_point * inside
            grad_zero_point = (inside - grad.sum()) * scale
        return grad_x.to(x.dtype), grad_scale * scale_gain, grad_zero_point, None, None


def _codes(x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int) -> Tensor:
    codes = (x.float() / scale).round_()
    if zero_point is not None:
        codes.add_(zero_point)
    return codes.clamp_(0, top)


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor | None, top: int) -> Tensor:
    """Return code − zp: the multiple of the scale that each element is quantized to."""
    codes = _codes(x, scale, zero_point, top)
    return codes if zero_point is None else codes.sub_(zero_point)


def _note_loaded(quantizer: nn.Module, _incompatible_keys: object) -> None:
    assert isinstance(quantizer, ActivationQuantizer)
    quantizer._note_calibrated()


class ActivationQuantizer(nn.Module):
    """Quantizer of a layer's input, Eq. (4)–(5): every width has its own scale and, for signed inputs, zero point.

    X̂ = (clip(round(X/s) + zp, 0, 2^b−1) − zp) · s, where zp = 0 for unsigned inputs and a learned integer otherwise.
    Zero is therefore always a code, and zero padding stays exact.

    Args:
        bits: candidate widths, descending.
        signed: whether the input may be negative.
        parametrization: how scales are learned, see `PositiveScale`.
        gradient_scale: multiply scale gradients by LSQ's 1/√(N·p_b), N the number of elements of the input.
        layer_name: for error messages.
    """

    def __init__(
        self,
        bits: tuple[int, ...],
        *,
        signed: bool,
        parametrization: Parametrization = "log",
        gradient_scale: bool = False,
        layer_name: str = "",
    ) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.gradient_scale = gradient_scale
        self.calibrated = False
        self.layer_name = layer_name
        self.scales = nn.ModuleDict({str(b): PositiveScale((), parametrization) for b in bits})
        self.zero_points = nn.ModuleDict({str(b): ZeroPoint(uint_range(b)[1]) for b in bits} if signed else {})
        self.register_load_state_dict_post_hook(_note_loaded)

    def scale_for(self, bits: int) -> PositiveScale:
        """Return the learned scale of one width."""
        scale = self.scales[str(bits)]
        assert isinstance(scale, PositiveScale)
        return scale

    def zero_point_for(self, bits: int) -> ZeroPoint | None:
        """Return the learned zero point of one width, or None for unsigned inputs."""
        if not self.signed:
            return None
        zero_point = self.zero_points[str(bits)]
        assert isinstance(zero_point, ZeroPoint)
        return zero_point

    def set_(self, bits: int, scale: Tensor, zero_point: Tensor | float | None = None) -> None:
        """Set scale and zero point of one width exactly; the quantizer is calibrated once every width is set."""
        self.scale_for(bits).set_(scale)
        module = self.zero_point_for(bits)
        if module is not None:
            module.set_(0.0 if zero_point is None else zero_point)
        self._note_calibrated()

    def _note_calibrated(self) -> None:
        # Kept as a Python bool so that a forward pass does not wait for the device.
        self.calibrated = all(self.scale_for(b).is_set for b in self.bits)

    def _values(self, bits: int) -> tuple[Tensor, Tensor | None]:
        if not self.calibrated:
            layer = f"layer {self.layer_name!r}" if self.layer_name else "a layer"
            raise CalibrationError(
                f"the input of {layer} has no scales yet; call bitswitch.calibrate(model, batches) first"
            )
        zero_point = self.zero_point_for(bits)
        return self.scale_for(bits).value(), None if zero_point is None else zero_point.value()

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """Return X̂ of Eq. (5) at `bits` bits: the shape and dtype of `x`, with gradients for x, scale and zero point.

        Raises:
            CalibrationError: the scales have not been set.
        """
        scale, zero_point = self._values(bits)
        top = uint_range(bits)[1]
        gain = 1.0 / math.sqrt(max(1, x.numel()) * top) if self.gradient_scale else 1.0
        return _QuantizeActivation.apply(x, scale, zero_point, top, gain)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def codes(self, x: Tensor, bits: int) -> Tensor:
        """Return the codes 0 … 2^b−1 of Eq. (4) as an integer-valued float32 tensor of the shape of `x`.

        Raises:
            CalibrationError: the scales have not been set.
        """
        scale, zero_point = self._values(bits)
        return _codes(x, scale, zero_point, uint_range(bits)[1])

    def extra_repr(self) -> str:  # noqa: D102
        return f"bits={self.bits}, signed={self.signed}"
