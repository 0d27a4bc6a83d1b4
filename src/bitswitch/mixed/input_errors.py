"""How far quantization moves the inputs of every layer, measured on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitswitch._calibrate import check_batches, default_forward
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
        batches: what `forward` takes; the first dimension of the first tensor in the output counts the examples.
        forward: calls the model on one batch, as for `bitswitch.calibrate`.

    Raises:
        ConfigError: there are no batches, or the output has no tensor with a dimension.
        CalibrationError: the model is not calibrated.
        ArgumentError: `batches` is a tensor or a mapping.
    """
    check_batches(batches)
    network = unwrap(model)
    layers = {name: layer for name, layer in iter_layers(network) if layer.input_quantizer is not None}
    totals: ObjectiveTable = {name: dict.fromkeys(layer.widths, 0.0) for name, layer in layers.items()}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, quantizer = _first_tensor((args, kwargs)), layers[name].input_quantizer
            assert x is not None
            assert quantizer is not None
            for bits in totals[name]:
                totals[name][bits] += float((quantizer(x, bits) - x).double().square().sum())

        return hook

    handles = [layer.register_forward_pre_hook(hook_for(name), with_kwargs=True) for name, layer in layers.items()]
    count = 0
    try:
        with in_mode(network, training=False), at(network, state_of(network).bits[0]), float_forward(network):
            for batch in batches:
                output = _first_tensor((forward or default_forward)(network, batch))
                if output is None or output.dim() == 0:
                    raise ConfigError("the output of the model must have a tensor whose first dimension is the batch")
                count += len(output)
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise ConfigError("input errors need at least one batch")
    return {name: {bits: total / count for bits, total in row.items()} for name, row in totals.items()}


def _first_tensor(tree: Any) -> Tensor | None:
    return next((leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)), None)
