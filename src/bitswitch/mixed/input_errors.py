"""How far quantization moves the inputs of every layer, measured on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch._calibrate import default_forward
from bitswitch.errors import ConfigError
from bitswitch.layers.base import float_forward, iter_layers
from bitswitch.layers.modes import in_mode
from bitswitch.layers.table import state_of, unwrap
from bitswitch.mixed.objective import ObjectiveTable
from bitswitch.switching import at


@torch.no_grad()
def input_errors(
    model: nn.Module, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], Any] | None = None
) -> ObjectiveTable:
    """Return E‖X̂_l(b) − X_l‖² per example, for every layer with a quantized input and each of its widths.

    X_l is the input in the float network. It is what `perturbation` takes together with traces over the inputs.

    Args:
        model: a prepared and calibrated model with float weights; its mode and precision are restored.
        batches: what `forward` takes; the first dimension of the output counts the examples.
        forward: calls the model on one batch, as for `bitswitch.calibrate`.

    Raises:
        ConfigError: there are no batches.
        CalibrationError: the model is not calibrated.
    """
    network = unwrap(model)
    layers = {name: layer for name, layer in iter_layers(network) if layer.input_quantizer is not None}
    totals: ObjectiveTable = {name: dict.fromkeys(layer.widths, 0.0) for name, layer in layers.items()}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x, quantizer = args[0], layers[name].input_quantizer
            assert isinstance(x, Tensor)
            assert quantizer is not None
            for bits in totals[name]:
                totals[name][bits] += float((quantizer(x, bits) - x).double().square().sum())

        return hook

    handles = [layer.register_forward_pre_hook(hook_for(name)) for name, layer in layers.items()]
    count = 0
    try:
        with in_mode(network, training=False), at(network, state_of(network).bits[0]), float_forward(network):
            for batch in batches:
                output = (forward or default_forward)(network, batch)
                count += len(output) if isinstance(output, Tensor) else 1
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise ConfigError("input errors need at least one batch")
    return {name: {bits: total / count for bits, total in row.items()} for name, row in totals.items()}
