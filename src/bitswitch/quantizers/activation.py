"""The quantizer of activations: a scale and a zero point a width."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitswitch.errors import CalibrationError
from bitswitch.quantizers._fused import FusedInput, usable
from bitswitch.quantizers._reference import ReferenceInput, input_codes
from bitswitch.quantizers.scales import Parametrization, PositiveScale, ZeroPoint
from bitswitch.rounding import uint_range


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
        input_bits: {width: width of the codes b}, where that is another than the width of the weight.
    """

    def __init__(
        self,
        bits: tuple[int, ...],
        *,
        signed: bool,
        parametrization: Parametrization = "log",
        gradient_scale: bool = False,
        layer_name: str = "",
        input_bits: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.gradient_scale = gradient_scale
        self.calibrated = False
        self.layer_name = layer_name
        self.input_bits = {b: (input_bits or {}).get(b, b) for b in bits}
        self.scales = nn.ModuleDict({str(b): PositiveScale((), parametrization) for b in bits})
        self.zero_points = nn.ModuleDict({str(b): ZeroPoint(self.top(b)) for b in bits} if signed else {})
        self.register_load_state_dict_post_hook(_note_loaded)

    def top(self, bits: int) -> int:
        """Return the highest code where the weight has `bits` bits."""
        return uint_range(self.input_bits[bits])[1]

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

    def _calibrated_scale(self, bits: int) -> PositiveScale:
        if not self.calibrated:
            layer = f"layer {self.layer_name!r}" if self.layer_name else "a layer"
            raise CalibrationError(
                f"the input of {layer} has no scales yet; call bitswitch.calibrate(model, batches) first"
            )
        return self.scale_for(bits)

    def _zero_point_value(self, bits: int) -> Tensor | None:
        zero_point = self.zero_point_for(bits)
        return None if zero_point is None else zero_point.value()

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """Return X̂ of Eq. (5): the shape and dtype of `x`, with gradients for x, scale and zero point.

        Args:
            x: the input.
            bits: width of the weight.

        Raises:
            CalibrationError: the scales have not been set.
        """
        scale, zero_point = self._calibrated_scale(bits), self._zero_point_value(bits)
        top = self.top(bits)
        gain = 1.0 / math.sqrt(max(1, x.numel()) * top) if self.gradient_scale else 1.0
        if usable(x, *scale.held, zero_point):
            result = FusedInput.apply(x, *scale.learned(), zero_point, top, gain)
        else:
            result = ReferenceInput.apply(x, scale.value(), zero_point, top, gain)
        return result  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def codes(self, x: Tensor, bits: int) -> Tensor:
        """Return the codes of Eq. (4) as an integer-valued float32 tensor of the shape of `x`.

        Args:
            x: the input.
            bits: width of the weight.

        Raises:
            CalibrationError: the scales have not been set.
        """
        scale = self._calibrated_scale(bits).value()
        return input_codes(x, scale, self._zero_point_value(bits), self.top(bits))

    def extra_repr(self) -> str:  # noqa: D102
        odd = {b: own for b, own in self.input_bits.items() if own != b}
        return f"bits={self.bits}, signed={self.signed}" + (f", input_bits={odd}" if odd else "")
