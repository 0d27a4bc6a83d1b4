"""The quantizer of weights: Double Rounding with a learned scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bitswitch.errors import PrepareError
from bitswitch.quantizers._fused import TYPES, FusedWeight, WeightConfig, usable
from bitswitch.quantizers._reference import ReferenceWeight
from bitswitch.quantizers.scales import Parametrization, PositiveScale
from bitswitch.rounding import dequantize, double_round, int_range, second_round

Granularity = Literal["tensor", "channel", "group"]

GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel", "group")

# Of a mid-rise width of 8 bits, the odd numbers 2c + 1 that are multiplied with have 9.
MOST_MIDRISE_BITS = 7


def check_midrise(midrise: tuple[int, ...], bits: tuple[int, ...], *, shared: bool) -> None:
    """Check which widths are to be mid-rise.

    Args:
        midrise: those widths.
        bits: candidate widths, descending.
        shared: whether all widths have one scale.

    Raises:
        PrepareError: one has more than 7 bits, or is the stored width of several.
    """
    for width in midrise:
        if width > MOST_MIDRISE_BITS:
            raise PrepareError(f"midrise: at most {MOST_MIDRISE_BITS} bits; got {width}")
        if shared and len(bits) > 1 and width == max(bits):
            raise PrepareError(f"midrise: {width} bits are stored, and lower widths are rounded from them")


class WeightQuantizer(nn.Module):
    """Double Rounding of one weight, Eq. (1)–(3), with a learned scale per tensor, output channel or group.

    The weight is given *out-first*: its first dimension is the output channel (of an embedding, the row), whatever the
    layout of the layer. Scales have the shape () for "tensor", (out,) for "channel" and (out, K / group_size) for
    "group", where K is the number of weights of one output channel.

    Args:
        shape: out-first shape of the weight.
        bits: candidate widths, descending; the first is the stored width h.
        granularity: "tensor", "channel" or "group".
        group_size: number of consecutive inputs that share a scale, for "group".
        shared: one scale s_h for all widths. If False, the comparison mode of the paper (`Ours*`): every width has its
            own scale and rounds the float weights once, so the stored model stays float.
        parametrization: how scales are learned, see `PositiveScale`.
        gradient_scale: multiply scale gradients by LSQ's 1/√(N·p_b), N the number of weights that share the scale.
        midrise: those of `bits` whose levels are (c + ½) · s_b; see `bitswitch.rounding`.

    Raises:
        PrepareError: the group size is missing or does not divide K, or a width cannot be mid-rise.
    """

    def __init__(
        self,
        shape: Sequence[int],
        bits: tuple[int, ...],
        granularity: Granularity = "tensor",
        group_size: int | None = None,
        *,
        shared: bool = True,
        parametrization: Parametrization = "log",
        gradient_scale: bool = False,
        midrise: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        check_midrise(midrise, bits, shared=shared)
        self.bits = bits
        self.midrise = midrise
        self.granularity: Granularity = granularity
        self.group_size = group_size
        self.shared = shared
        self.gradient_scale = gradient_scale
        fan_in = math.prod(shape[1:])
        if granularity not in GRANULARITIES:
            raise PrepareError(f"granularity must be one of {GRANULARITIES}; got {granularity!r}")
        if granularity == "group" and (not group_size or group_size < 0 or fan_in % group_size):
            raise PrepareError(f"granularity 'group' needs a group_size that divides {fan_in}; got {group_size}")
        self.scale_shape: tuple[int, ...] = {
            "tensor": (),
            "channel": (shape[0],),
            "group": (shape[0], fan_in // (group_size or 1)),
        }[granularity]
        self.elements_per_scale = math.prod(shape) // max(1, math.prod(self.scale_shape))
        if shared:
            self.scale = PositiveScale(self.scale_shape, parametrization)
        else:
            self.scales = nn.ModuleDict({str(b): PositiveScale(self.scale_shape, parametrization) for b in bits})

    @property
    def stored_bits(self) -> int:
        """The stored width h."""
        return self.bits[0]

    def scale_for(self, bits: int) -> PositiveScale:
        """Return the learned scale that `bits` uses; the same one for every width in the shared mode."""
        scale = self.scale if self.shared else self.scales[str(bits)]
        assert isinstance(scale, PositiveScale)
        return scale

    def code_bits(self, bits: int) -> int:
        """Return the width of the first rounding: h when the scale is shared, else `bits` itself."""
        return self.stored_bits if self.shared else bits

    def _align(self, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """View the weight, and the scale of its rows, so that they broadcast."""
        if self.granularity == "tensor":
            return weight, scale
        if self.granularity == "channel":
            return weight, scale.reshape(scale.shape + (1,) * (weight.dim() - scale.dim()))
        rows = weight.flatten(scale.dim() - 1)
        return rows.unflatten(-1, (scale.shape[-1], -1)), scale.unsqueeze(-1)

    def forward(
        self, weight: Tensor, bits: int, rows: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the weight as it is at `bits` bits: dequantized, with gradients for weight and scale.

        Args:
            weight: out-first float weight; with `rows`, those rows of it, of shape rows.shape + (K,).
            bits: one of the candidate widths.
            rows: indices of the rows given, for embeddings that look up before they quantize.
            dtype: type of the result. Another one than float32 is the float32 result rounded to it.
        """
        stored_bits, gain = self.code_bits(bits), self._scale_gain(bits)
        if usable(weight, *self.scale_for(bits).held) and dtype in TYPES:
            parameter, origin = self.scale_for(bits).learned() if rows is None else (self._scale(bits, rows), None)
            config = WeightConfig(stored_bits, bits, gain, dtype, bits in self.midrise)
            return FusedWeight.apply(weight, parameter, origin, config)  # pyright: ignore[reportReturnType]
        aligned, scale = self._align(weight, self._scale(bits, rows))
        quantized = ReferenceWeight.apply(aligned, scale, stored_bits, bits, gain, self.midrise)
        assert isinstance(quantized, Tensor)
        return quantized.reshape(weight.shape).to(dtype)

    def _scale(self, bits: int, rows: Tensor | None = None) -> Tensor:
        """Return the scale, or that of each of the `rows` given."""
        scale = self.scale_for(bits).value()
        return scale if rows is None or not self.scale_shape else scale[rows]

    def _scale_gain(self, bits: int) -> float:
        """Return the factor of the scale's gradient."""
        return 1.0 / math.sqrt(self.elements_per_scale * int_range(bits)[1]) if self.gradient_scale else 1.0

    @torch.no_grad()
    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """Return the int8 codes of an out-first float weight at `bits` bits, those of the training forward exactly."""
        aligned, scale = self._align(weight, self._scale(bits))
        codes = double_round(aligned, scale, self.code_bits(bits), bits, self.midrise)
        return codes.reshape(weight.shape).to(torch.int8)

    def lower(self, codes: Tensor, bits: int) -> Tensor:
        """Return the codes W̃_l of `bits` bits that the stored integers W̃_h give, Eq. (2); same shape and dtype."""
        return second_round(codes, self.stored_bits, bits, self.midrise)

    @torch.no_grad()
    def dequantize(self, codes: Tensor, bits: int, rows: Tensor | None = None) -> Tensor:
        """Return the float32 weights that int8 codes of `bits` bits stand for, bit-identical to `forward`."""
        aligned, scale = self._align(codes, self._scale(bits, rows))
        return dequantize(aligned, scale, self.code_bits(bits), bits, self.midrise).reshape(codes.shape)

    def extra_repr(self) -> str:  # noqa: D102
        group = f", group_size={self.group_size}" if self.granularity == "group" else ""
        midrise = f", midrise={self.midrise}" if self.midrise else ""
        return f"bits={self.bits}, granularity={self.granularity!r}{group}, shared={self.shared}{midrise}"
