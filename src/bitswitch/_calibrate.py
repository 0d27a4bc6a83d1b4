"""Set activation scales and BatchNorm statistics from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch._batch_norm import Moments, record_moments, shift_statistics, spread_statistics
from bitswitch._initial import best_input_scale
from bitswitch._plan import Request
from bitswitch._prepare import complete
from bitswitch.errors import ArgumentError, CalibrationError, PrepareError
from bitswitch.layers.base import float_forward, iter_layers
from bitswitch.layers.modes import in_mode
from bitswitch.layers.table import state_of, unwrap
from bitswitch.quantizers import ActivationQuantizer
from bitswitch.switching import at

_SAMPLES_PER_LAYER = 1 << 15


class _Recorder:
    """Collects an evenly drawn sample of what one layer is given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[Tensor] = []
        self.low = self.high = 0.0
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else next(iter(kwargs.values()))).detach().float().reshape(-1)
        if x.numel() == 0:
            return
        low, high = x.aminmax()
        if not math.isfinite(float(low)) or not math.isfinite(float(high)):
            raise CalibrationError(f"the input of layer {self.name!r} has NaN or infinite values")
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        index = torch.randint(x.numel(), (min(x.numel(), _SAMPLES_PER_LAYER),), generator=self.generator)
        self.samples.append(x[index.to(x.device)])

    def drawn(self) -> Tensor:
        """Return at most `_SAMPLES_PER_LAYER` samples, drawn from all batches alike."""
        samples = torch.cat(self.samples)
        index = torch.randperm(samples.numel(), generator=self.generator)[:_SAMPLES_PER_LAYER]
        return samples[index.to(samples.device)]


def default_forward(model: nn.Module, batch: Any) -> Any:
    """Call a model on what a data loader gives: a tensor, (inputs, …), or a mapping of keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(batch[0])
    return model(batch)


def check_batches(batches: Iterable[Any]) -> None:
    """Refuse one batch in place of several: its rows, or its keys, would be taken for batches.

    Raises:
        ArgumentError: `batches` is a tensor or a mapping.
    """
    if isinstance(batches, (Tensor, Mapping)):
        kind = "tensor" if isinstance(batches, Tensor) else type(batches).__name__
        raise ArgumentError(f"batches must be a list or loader of batches; put a single {kind} into a list: [x]")


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    batch_norm: bool = True,
) -> None:
    """Set the activation scales of every width from data, and move its BatchNorm statistics by what it changes.

    The float network is run on the batches, with the BatchNorms of the highest width whatever the active one is; each
    layer's scale and zero point of each width are the minimisers of the squared error on a sample of its inputs, Eq.
    (4)–(5). Then every width is run, and where its BatchNorms see another mean and variance than those of the float
    network, their running statistics move by the difference. A model that was prepared without example inputs is
    completed by the first batch.

    Args:
        model: a prepared model, changed in place; its mode and precision are restored.
        batches: what `forward` takes; a few hundred examples are enough. They are kept until the end.
        forward: calls the model on one batch. By default a tensor or the first item of a tuple is passed as it is, and
            a mapping as keyword arguments.
        batch_norm: move the BatchNorm statistics. That happens at the first calibration only, while all widths still
            have those of the float network, and not after the state dict of a calibrated model was loaded.

    Raises:
        CalibrationError: there are no batches, a layer's input is NaN or infinite or, against what was seen before,
            negative, or the model was loaded and holds stored integers. No scale has been set then.
        PrepareError: a quantized layer's forward never ran.
        ArgumentError: `batches` is a tensor or a mapping.
    """
    forward = forward or default_forward
    check_batches(batches)
    kept = list(batches)
    if not kept:
        raise CalibrationError("calibrate needs at least one batch")
    _complete_if_pending(model, kept[0], forward)
    state = state_of(model)
    network = unwrap(model)
    frozen = next((name for name, layer in iter_layers(network) if layer.is_frozen), None)
    if frozen is not None:
        raise CalibrationError(
            f"layer {frozen!r} holds stored integers and trained scales; "
            "call bitswitch.unfreeze(model) to calibrate anew"
        )

    def run() -> None:
        for batch in kept:
            forward(network, batch)

    with in_mode(network, training=False):
        with at(network, state.bits[0]):
            float_moments = _set_all_input_scales(network, run)
        if batch_norm and not state.calibrated:
            for bits in state.bits:
                with at(network, bits):
                    shift_statistics(network, float_moments, run)
            spread_statistics(network)
    state.calibrated = True


def _set_all_input_scales(network: nn.Module, run: Callable[[], None]) -> list[list[Moments | None]]:
    """Set the scales and return the moments that the BatchNorms saw in the float network."""
    recorders = {name: _Recorder(name) for name, _ in iter_layers(network)}
    handles = [
        layer.register_forward_pre_hook(recorders[name], with_kwargs=True) for name, layer in iter_layers(network)
    ]
    try:
        with float_forward(network):
            float_moments = record_moments(network, run)
    finally:
        for handle in handles:
            handle.remove()
    layers = dict(iter_layers(network))
    ran = {layers[name].weight_quantizer for name, recorder in recorders.items() if recorder.samples}
    # A layer that only holds the weight of one that is called has no input that could need scales.
    idle = [
        name
        for name, layer in layers.items()
        if not recorders[name].samples and (layer.input_quantizer is not None or layer.weight_quantizer not in ran)
    ]
    if idle:
        raise PrepareError(
            f"these layers were prepared but their forward was never called: {', '.join(idle)}; "
            "leave them out with skip="
        )
    quantizers = {name: layer.input_quantizer for name, layer in layers.items()}
    # All are found before the first is set: a layer that is refused leaves the others as they were.
    found = [(q, _best_input_scales(q, recorders[name])) for name, q in quantizers.items() if q is not None]
    for quantizer, scales in found:
        for bits, (scale, zero_point) in scales.items():
            quantizer.set_(bits, scale, zero_point)
    return float_moments


def _complete_if_pending(model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any]) -> None:
    pending = unwrap(model).__dict__.get("_bitswitch")
    if isinstance(pending, Request):
        complete(unwrap(model), pending, lambda network: forward(network, batch))


def _best_input_scales(quantizer: ActivationQuantizer, recorder: _Recorder) -> dict[int, tuple[Tensor, float]]:
    """Return scale and zero point of every width."""
    if not quantizer.signed and recorder.low < 0:
        raise CalibrationError(
            f"layer {recorder.name!r} was taken to have inputs that are never negative, but saw {recorder.low}"
        )
    samples = recorder.drawn()
    return {
        bits: best_input_scale(
            samples, recorder.low, recorder.high, quantizer.input_bits[bits], signed=quantizer.signed
        )
        for bits in quantizer.bits
    }
