"""Where a loss became NaN or infinite: one more forward pass that looks at every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch.layers import SwitchableLayer, iter_layers


def find_non_finite(model: nn.Module, forward: Callable[[], object]) -> str:
    """Say where values that are not finite come from first.

    Args:
        model: the prepared network itself, without wrappers, at the precision in question.
        forward: runs the model on the batch in question. Buffers, such as running statistics, are put back afterwards.

    Returns:
        A clause for an error message, naming the layer.
    """
    return _non_finite_state(model) or _non_finite_output(model, forward)


def _non_finite_state(model: nn.Module) -> str | None:
    for name, layer in iter_layers(model):
        if not _is_finite(layer.weight_quantizer.scale_for(layer.bits).value()):
            return f"the weight scale of layer {name!r} is not finite"
        quantizer = layer.input_quantizer
        if quantizer is not None and not _is_finite(quantizer.scale_for(layer.bits).value()):
            return f"the activation scale of layer {name!r} at {layer.bits} bits is not finite"
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            owner, _, kind = name.rpartition(".")
            return f"the {kind} of layer {owner!r} is not finite any more"
    return None


def _non_finite_output(model: nn.Module, forward: Callable[[], object]) -> str:
    found: list[str] = []

    def check_batch(_module: nn.Module, args: Any, kwargs: Any) -> None:
        if not _is_finite((args, kwargs)):
            found.append("the batch itself holds values that are not finite")

    def check_layer(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            # The innermost module that computes such values is the first to finish with them.
            if not found and not _is_finite(output):
                width = f" at {module.bits} bits" if isinstance(module, SwitchableLayer) else ""
                what = f"layer {name!r}" if name else "the model"
                found.append(f"{what}{width} is the first whose output is not finite")

        return hook

    handles = [model.register_forward_pre_hook(check_batch, with_kwargs=True)]
    handles += [module.register_forward_hook(check_layer(name)) for name, module in model.named_modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
        for buffer, value in buffers:
            buffer.copy_(value)
    return (
        found[0] if found else "every layer's output is finite when the batch is run again: look at the loss function"
    )


def _is_finite(value: object) -> bool:
    return all(bool(t.isfinite().all()) for t in _tensors(value) if t.is_floating_point() or t.is_complex())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
