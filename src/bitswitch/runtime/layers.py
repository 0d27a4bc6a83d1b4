"""Layers without float weights, which compute with the stored integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch.errors import ArgumentError, PrepareError
from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.derived import derived_class
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.rounding import uint_range
from bitswitch.runtime.affine import fold, input_numbers
from bitswitch.runtime.configuration import Active, Configuration
from bitswitch.runtime.kernels import FLOATS, quantize_rows, run_linear_planes, run_quantize_codes
from bitswitch.runtime.stored import StoredWeight
from bitswitch.runtime.tiles import FEW_ROWS, run_linear_tiled

# Zero point of codes that are scaled row by row.
DYNAMIC_ZERO_POINT = 128


@dataclass(frozen=True, eq=False)
class Operands:
    """What a layer computes with at one width.

    Attributes:
        bits: the width l.
        scale: of the input codes; None if every row of the input has its own, from its largest value.
        zero_point: code that stands for zero.
        top: the largest code.
        multiplier: float32 m (N, groups).
        bias: float32 b (N,), or None.
        group_size: inputs that share a multiplier, or 0.
        planes: bit planes that the width needs.
        addresses: theirs.
        ops: kernels bound to shapes, or whatever else can be made again.
    """

    bits: int
    scale: float | None
    zero_point: int
    top: int
    multiplier: Tensor
    bias: Tensor | None
    group_size: int
    planes: tuple[Tensor, ...]
    addresses: list[int]
    ops: dict[Any, Any]


class IntegerLayer(SwitchableLayer):
    """Mixin that stands before a switchable class and takes its weight away.

    Its width is that of the engine's configuration that the current thread runs; it cannot be set on the layer.
    """

    stored: StoredWeight
    layer_name: str
    active: Active

    @property
    def bits(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The width at which the current thread runs the layer."""
        return self.active.current().widths[self.layer_name]

    @property
    def num_planes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many leading bit planes are there."""
        return self.stored.num_planes

    @property
    def is_frozen(self) -> bool:
        """Always: there is no float weight."""
        return True

    @property
    def num_outputs(self) -> int:
        """Number of output channels."""
        return self.stored.num_rows

    def weight_codes(self, bits: int | None = None) -> Tensor:
        """Return the integer codes W̃_l of the weight; see `SwitchableLayer.weight_codes`."""
        return self.stored.codes(self.bits if bits is None else bits)

    def quantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight at the active width; see `SwitchableLayer.quantized_weight`."""
        bits = self.bits
        return self.from_out_first(self.weight_quantizer.dequantize(self.stored.codes(bits), bits)).to(dtype)

    def unfreeze(self) -> None:
        """Refuse: an engine cannot be trained."""
        raise PrepareError("an engine cannot be made trainable; unfreeze the model that it was deployed from")

    def operands(self) -> Operands:
        """Return what to compute with in the current call."""
        configuration = self.active.current()
        found = configuration.operands.get(self.layer_name)
        return found if found is not None else self._bind(configuration)

    def _bind(self, configuration: Configuration) -> Operands:
        bits = configuration.widths[self.layer_name]
        quantizer = self.input_quantizer
        multiplier, bias = self.stored.derived.get(
            ("affine", self.layer_name, bits),
            lambda: fold(self, bits),
            lambda item: sum(4 * part.numel() for part in item if part is not None),
        )
        scale, zero_point = (None, DYNAMIC_ZERO_POINT) if quantizer is None else input_numbers(quantizer, bits)
        made = Operands(
            bits,
            scale,
            zero_point,
            uint_range(8)[1] if quantizer is None else quantizer.top(bits),
            multiplier,
            bias,
            self.weight_quantizer.group_size or 0,
            self.stored.planes(bits),
            self.stored.plane_addresses(bits),
            {},
        )
        # All threads get the one that was first; any is as good.
        return configuration.operands.setdefault(self.layer_name, made)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            return self.quantized_weight(self.weight_dtype)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise PrepareError("the weight of an engine's layer is computed and read-only")
        super().__setattr__(name, value)

    def extra_repr(self) -> str:  # noqa: D102
        # Past SwitchableLayer's, which is the same but for the words.
        return f"{super().extra_repr()}, {self.stored.num_planes} planes"


class IntegerLinear(IntegerLayer):
    """Linear layers on inputs of any rank: `torch.nn.Linear`, and Conv1D of transformers."""

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer at the width of the call: (…, K) → (…, N), in the dtype of the input."""
        stored = self.stored
        if not input.dim() or input.shape[-1] != stored.num_columns:
            # Nothing behind this looks at the shape again.
            raise RuntimeError(f"{self.layer_name!r} takes (…, {stored.num_columns}), not {tuple(input.shape)}")
        rows = input.reshape(-1, stored.num_columns)
        out = multiply(rows if rows.is_contiguous() else rows.contiguous(), self.operands(), stored)
        out = out.view(*input.shape[:-1], stored.num_rows)
        return out if input.dtype == torch.float32 else out.to(input.dtype)


class IntegerEmbedding(IntegerLayer):
    """Embeddings: rows are looked up in the planes."""

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        """Look up, (…) int64 → (…, K) of the type of the weight, bit-identical to the loaded model."""
        bits = self.bits
        if input.numel() and int(input.min()) < 0:
            raise IndexError(f"{self.layer_name!r} has no rows with negative numbers")
        rows = self.stored.rows(input.reshape(-1), bits).view(*input.shape, self.stored.num_columns)
        return self.weight_quantizer.dequantize(rows, bits, rows=input).to(self.weight_dtype)


class FollowingNorm(PerWidthNorm):
    """Mixin that stands before a per-width BatchNorm and makes it follow the engine's configuration."""

    layer_name: str
    active: Active

    @property
    def key(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which normalisation the current thread runs."""
        return self.active.current().norm_keys[self.layer_name]


def encode(x: Tensor, operands: Operands) -> tuple[Tensor, Tensor | None]:
    """Return the uint8 codes of contiguous float rows, and the scale of each row if they have their own.

    Raises:
        ArgumentError: the rows are not on the CPU.
    """
    if x.device.type != "cpu":
        raise ArgumentError(f"the input of an integer layer must be on the CPU, not on {x.device}")
    if x.dtype not in FLOATS:
        x = x.float()
    if operands.scale is None:
        return quantize_rows(x)
    return run_quantize_codes(x, operands.scale, operands.zero_point, operands.top), None


def multiply(x: Tensor, operands: Operands, stored: StoredWeight) -> Tensor:
    """Quantize contiguous float rows (M, K) and multiply them by a stored weight: float32 (M, N)."""
    codes, row_scale = encode(x, operands)
    return multiply_codes(codes, row_scale, operands, stored)


def multiply_codes(codes: Tensor, row_scale: Tensor | None, operands: Operands, stored: StoredWeight) -> Tensor:
    """Multiply codes (M, K) by a stored weight: float32 (M, N)."""
    # Everything was checked when the operands were made.
    tiles = stored.kept_tiles(operands.bits) if codes.shape[0] > FEW_ROWS and not operands.group_size else None
    if tiles is not None:
        return run_linear_tiled(
            tiles,
            codes,
            operands.multiplier,
            operands.bias,
            zero_point=operands.zero_point,
            row_scale=row_scale,
        )
    return run_linear_planes(
        operands.planes,
        operands.addresses,
        codes,
        operands.multiplier,
        operands.bias,
        **stored.form(operands.bits),
        zero_point=operands.zero_point,
        group_size=operands.group_size,
        row_scale=row_scale,
    )


def mixed(mixin: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of `mixin` before `kind`, the same one every time."""
    return derived_class(mixin, kind, kind.__name__.replace("Switchable", "Integer").replace("PerWidth", "Following"))
