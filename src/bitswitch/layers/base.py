"""What every switchable layer is: a layer of PyTorch whose weight and input are quantized at a width of choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch._planes import planes_needed
from bitswitch.errors import PrepareError
from bitswitch.layers.held import HELD_KEY, held_tensor, planes_in
from bitswitch.quantizers import ActivationQuantizer, WeightQuantizer


class SwitchableLayer(nn.Module):
    """Mixin that stands before a layer class of PyTorch: `class SwitchableConv2d(SwitchableLayer, nn.Conv2d)`.

    A layer is made switchable by changing its class, so `isinstance(layer, nn.Conv2d)`, its name, its parameters and
    its identity stay what they were. It is in one of two states. While *trainable* it holds the float `weight` and
    rounds it in every forward pass. Once *frozen* it holds `codes`, the stored integers W̃_h as int8, and `weight` is
    computed from them at the active width and cannot be assigned.

    The state dict of a frozen layer that misses bit planes says how many it has. Loading it sets `num_planes`, and is
    refused with `MissingPlanesError` if they are too few for the active width, and with `CheckpointError` if they are
    of another checkpoint than the one that the layer was opened from.

    Attributes:
        weight_quantizer: quantizer of the weight; shared by layers that share a weight.
        input_quantizer: quantizer of the input, or None if the input stays float.
        bits: the active width.
        num_planes: number of leading bit planes that `codes` is made of; h while trainable.
        planes_of: a number that tells the checkpoint that has the other planes from others; 0 for none.
    """

    weight_quantizer: WeightQuantizer
    input_quantizer: ActivationQuantizer | None
    codes: Tensor
    # Empty, of the type of the weight that `codes` stand for: a buffer, so that casts of the network change it.
    _like_weight: Tensor
    bits: int
    num_planes: int
    planes_of: int = 0

    # Set only by `float_forward`, for observing what the float network computes.
    _bypass: bool = False

    def _attach(self, weight_quantizer: WeightQuantizer, input_quantizer: ActivationQuantizer | None) -> None:
        self.weight_quantizer = weight_quantizer
        self.register_module("input_quantizer", input_quantizer)
        self.bits = weight_quantizer.stored_bits
        self.num_planes = weight_quantizer.stored_bits

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that the layer was prepared for, in descending order."""
        return self.weight_quantizer.bits

    @property
    def stored_bits(self) -> int:
        """The stored width h, the largest of `widths`."""
        return self.weight_quantizer.stored_bits

    def planes_needed(self, bits: int) -> int:
        """Return how many leading bit planes `bits` bits need."""
        return planes_needed(self.stored_bits, bits, self.weight_quantizer.midrise)

    @property
    def is_frozen(self) -> bool:
        """Whether the layer holds integer codes and no float weight."""
        return "codes" in self._buffers

    @property
    def weight_dtype(self) -> torch.dtype:
        """Type of the weight: of the float weight that the layer holds, or held before it was frozen."""
        return self._like_weight.dtype if self.is_frozen else self.weight.dtype

    def keep_weight_dtype(self) -> None:
        """Remember the type of the weight, which is about to be taken away."""
        device = self.weight_quantizer.scale_for(self.stored_bits).parameter.device
        self.register_buffer("_like_weight", torch.empty(0, dtype=self.weight_dtype, device=device), persistent=False)

    def out_first(self, weight: Tensor) -> Tensor:
        """View a weight in the layer's own layout with the output channel as its first dimension."""
        return weight

    def from_out_first(self, weight: Tensor) -> Tensor:
        """Undo `out_first`."""
        return weight

    @property
    def num_outputs(self) -> int:
        """Number of output channels: rows of the out-first weight."""
        return self.out_first(self.codes if self.is_frozen else self.weight).shape[0]

    def quantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight at the active width: dequantized, in the layer's own layout.

        Args:
            dtype: type of the result; the float32 weight is rounded to it.
        """
        if self.is_frozen:
            codes = self.weight_quantizer.lower(self.codes, self.bits)
            return self.from_out_first(self.weight_quantizer.dequantize(codes, self.bits)).to(dtype)
        if self._bypass:
            return self.weight
        return self.from_out_first(self.weight_quantizer(self.out_first(self.weight), self.bits, dtype=dtype))

    def weight_codes(self, bits: int | None = None) -> Tensor:
        """Return the integer codes W̃_l of the weight.

        Args:
            bits: the width l; the active width by default.

        Returns:
            int8 tensor, contiguous, out-first.
        """
        bits = self.bits if bits is None else bits
        if self.is_frozen:
            return self.weight_quantizer.lower(self.codes, bits).contiguous()
        return self.weight_quantizer.codes(self.out_first(self.weight), bits).contiguous()

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return the input as the layer sees it at the active width: dequantized, of the shape and dtype of `x`."""
        if self.input_quantizer is None or self._bypass:
            return x
        return self.input_quantizer(x, self.bits)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize input and weight, in one floating-point type."""
        x = self.quantized_input(x)
        weight = self.quantized_weight(x.dtype)
        return x, weight if weight.dtype == x.dtype else weight.to(x.dtype)

    def set_codes(self, codes: Tensor, scale: Tensor, num_planes: int, planes_of: int = 0) -> None:
        """Replace the float weight by stored integers.

        Args:
            codes: int8 tensor of the out-first shape of the weight, W̃_h with the bits of missing planes zero.
            scale: float32 scale s_h, of the scale shape of the weight quantizer.
            num_planes: how many leading planes `codes` is made of.
            planes_of: which checkpoint the planes are of; 0 for none.

        Raises:
            PrepareError: widths do not share a scale.
        """
        if not self.weight_quantizer.shared:
            raise PrepareError("a layer with one scale a width (shared=False) has no common integers to freeze to")
        self.weight_quantizer.scale.set_(scale)
        self.weight_quantizer.scale.parameter.requires_grad_(False)
        self.keep_weight_dtype()
        self._parameters.pop("weight", None)
        self.register_buffer("codes", codes)
        self.num_planes = num_planes
        self.planes_of = planes_of

    def refine(self, codes: Tensor, num_planes: int) -> None:
        """Replace the codes of a frozen layer by ones that are made of more planes."""
        self.codes.copy_(codes)
        self.num_planes = num_planes

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_frozen and f"{prefix}codes" in destination and self.num_planes < self.stored_bits:
            destination[f"{prefix}{HELD_KEY}"] = held_tensor(self)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        num_planes = planes_in(self, state_dict, prefix)
        if num_planes is not None:
            # PyTorch would take it for a name that it does not expect.
            state_dict.pop(f"{prefix}{HELD_KEY}", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if num_planes is not None:
            self.num_planes = num_planes

    @torch.no_grad()
    def unfreeze(self) -> None:
        """Make the layer trainable: its weight becomes the dequantized stored integers, of the type that it had.

        Raises:
            PrepareError: only some of the planes were read, so the stored integers are not known in full.
        """
        if not self.is_frozen:
            return
        if self.num_planes < self.stored_bits:
            raise PrepareError(
                f"only {self.num_planes} of {self.stored_bits} bit planes were read; "
                f"switch to {self.stored_bits} bits first"
            )
        weight = self.from_out_first(self.weight_quantizer.dequantize(self.codes, self.stored_bits))
        weight = weight.to(self.weight_dtype)
        del self.codes, self._like_weight
        self.weight = nn.Parameter(weight.contiguous())
        self.weight_quantizer.scale.parameter.requires_grad_(True)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "codes" in self.__dict__.get("_buffers", {}):
            return self.quantized_weight(self.weight_dtype)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and "codes" in self.__dict__.get("_buffers", {}):
            raise PrepareError(
                "the weight of a stored layer is computed and read-only; call bitswitch.unfreeze(model) first"
            )
        super().__setattr__(name, value)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{super().extra_repr()}, bits={self.bits} of {self.widths}"


def layer_of(model: nn.Module, name: str) -> SwitchableLayer:
    """Return the switchable layer of a name that the layer table calls quantized.

    Raises:
        PrepareError: there is something else now.
    """
    layer = model.get_submodule(name)
    if not isinstance(layer, SwitchableLayer):
        raise PrepareError(
            f"layer {name!r} has been replaced by a {type(layer).__name__}, which has no widths; "
            "replace layers before bitswitch.prepare"
        )
    return layer


def iter_layers(model: nn.Module) -> Iterator[tuple[str, SwitchableLayer]]:
    """Yield (name, layer) for every switchable layer of a model, each module once."""
    for name, module in model.named_modules():
        if isinstance(module, SwitchableLayer):
            yield name, module


@contextmanager
def float_forward(model: nn.Module) -> Iterator[None]:
    """Run trainable layers in full precision inside the context."""
    layers = [layer for _, layer in iter_layers(model)]
    for layer in layers:
        layer._bypass = True
    try:
        yield
    finally:
        for layer in layers:
            del layer._bypass
