"""Run the operations of a plan that are left to PyTorch, and handle what they take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitswitch.runtime.graph.geometry import ShapeError
from bitswitch.runtime.graph.nodes import ConvNode
from bitswitch.runtime.graph.operands import Bound
from bitswitch.runtime.graph.purity import KEEPS_TYPE


def attribute_of(model: nn.Module, target: str) -> Any:
    """Return a tensor or another attribute of a network by its dotted name."""
    value: Any = model
    for part in target.split("."):
        value = getattr(value, part)
    return value


def fill(argument: Any, value: Callable[[fx.Node], Any]) -> Any:
    """Return an argument or result of a traced network with values for its nodes, in new lists and dicts.

    Those of torch.fx itself cannot be changed, which a caller or a module may want to do.
    """
    if isinstance(argument, fx.Node):
        return value(argument)
    if isinstance(argument, tuple):
        items = [fill(item, value) for item in argument]
        return type(argument)(*items) if hasattr(argument, "_fields") else tuple(items)
    if isinstance(argument, list):
        return [fill(item, value) for item in argument]
    if isinstance(argument, dict):
        return {key: fill(item, value) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(fill(item, value) for item in (argument.start, argument.stop, argument.step)))
    return argument


def operation(node: fx.Node, bound: Bound, model: nn.Module) -> Callable[[Mapping[str, Any]], Any]:
    """Return a function from values by name to the result of a traced operation."""
    run = _operation(node, bound, model)
    if not node.meta.get(KEEPS_TYPE) or not node.args or not isinstance(node.args[0], fx.Node):
        return run
    changed = node.args[0].name
    return lambda values: _of_type(run(values), values[changed])


def _of_type(result: Any, changed: Any) -> Any:
    """Return a result in the type of the tensor that the network changes in place."""
    if not isinstance(result, Tensor) or not isinstance(changed, Tensor) or result.dtype is changed.dtype:
        return result
    if not torch.can_cast(result.dtype, changed.dtype):
        raise ShapeError(f"a tensor of type {changed.dtype} is changed in place to {result.dtype}")
    return result.to(changed.dtype)


def _operation(node: fx.Node, bound: Bound, model: nn.Module) -> Callable[[Mapping[str, Any]], Any]:
    if node.op == "get_attr":
        constant = attribute_of(model, str(node.target))
        return lambda values: constant
    args, kwargs, target = node.args, dict(node.kwargs), node.target
    function: Any = target
    if node.op == "call_module":
        function = bound.modules[str(target)]
    if node.op == "call_method":
        name = str(target)

        def call_method(values: Mapping[str, Any]) -> Any:
            first, *rest = fill(args, lambda item: values[item.name])
            first = planar(first) if name in ("view", "view_as") else first
            return getattr(first, name)(*rest, **fill(kwargs, lambda item: values[item.name]))

        return call_method
    if len(args) == 1 and isinstance(args[0], fx.Node) and not kwargs:
        only = args[0].name
        return lambda values: function(values[only])

    def call(values: Mapping[str, Any]) -> Any:
        given = fill(args, lambda item: values[item.name])
        return function(*given, **fill(kwargs, lambda item: values[item.name]))

    return call


def as_nhwc(value: Any) -> Tensor:
    """Return a float32 tensor (N, C, H, W) with its channels last in memory, copied only where it must be.

    Raises:
        ShapeError: it has another number of dimensions.
    """
    tensor = as_float(value)
    if tensor.dim() != 4:
        raise ShapeError(f"expected four dimensions, not the shape {tuple(tensor.shape)}")
    return tensor.contiguous(memory_format=torch.channels_last)


def as_float(value: Any) -> Tensor:
    """Return a tensor in float32."""
    return value if value.dtype is torch.float32 else value.float()


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor (N, C, H, W) has its channels last in memory, and not also first."""
    if tensor.dim() != 4 or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last)


def planar(value: Any) -> Any:
    """Return a tensor that has its channels last in memory as a contiguous one, and anything else as it is.

    Kernels write their results with channels last, where the network itself has contiguous tensors.
    """
    return value.contiguous() if isinstance(value, Tensor) and is_channels_last(value) else value


def summand(node: ConvNode, value: Any, shape: tuple[int, ...]) -> Tensor:
    """Return what a convolution adds, with its channels last in memory.

    Raises:
        ShapeError: it does not have the shape (N, C, H, W) of the convolution's output.
    """
    tensor = as_float(value)
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"{node.addition} adds {tuple(tensor.shape)} to {shape}", node.addition)
    return tensor.contiguous(memory_format=torch.channels_last)


def view_nchw(buffer: Tensor) -> Tensor:
    """View a buffer (N, H, W, C) as PyTorch's (N, C, H, W), channels last."""
    return buffer.permute(0, 3, 1, 2)
