"""What the nodes of a traced network compute, for those that a plan knows."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.runtime.graph.purity import argument, function_name, has_hooks, is_from_torch
from bitswitch.runtime.tiles import MOST_PRODUCTS


@dataclass(frozen=True)
class MaxPool:
    """The geometry of a maximum pooling, (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool


def clamp_of(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[float, float] | None:
    """Return the bounds (low, high) of a ReLU, ReLU6, Hardtanh or clamp, or None for anything else."""
    if node.op == "call_module":
        module: Any = modules[str(node.target)]
        if type(module) is nn.ReLU:
            return 0.0, math.inf
        return (float(module.min_val), float(module.max_val)) if type(module) in (nn.ReLU6, nn.Hardtanh) else None
    if not is_from_torch(node):
        return None
    name = function_name(node)
    if name == "relu":
        return 0.0, math.inf
    if name == "relu6":
        return 0.0, 6.0
    if name == "hardtanh":
        return _bounds(argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0))
    if name in ("clamp", "clip"):
        return _bounds(argument(node, 1, "min", None), argument(node, 2, "max", None))
    return None


def _bounds(low: Any, high: Any) -> tuple[float, float] | None:
    if not all(item is None or isinstance(item, (int, float)) for item in (low, high)):
        return None
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def summands_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the two tensors that a node adds, or None for anything else."""
    is_addition = (node.op == "call_function" and node.target in (operator.add, torch.add)) or (
        node.op == "call_method" and node.target in ("add", "__add__", "__radd__")
    )
    if not is_addition or node.kwargs or len(node.args) != 2:
        return None
    left, right = node.args
    return (left, right) if isinstance(left, fx.Node) and isinstance(right, fx.Node) else None


def max_pool_of(node: fx.Node, modules: dict[str, nn.Module]) -> MaxPool | None:
    """Return the geometry of a 2d maximum pooling without indices, or None for anything else."""
    if node.op == "call_module":
        pool = modules[str(node.target)]
        if type(pool) is not nn.MaxPool2d or pool.return_indices:
            return None
        values = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        ceil_mode = pool.ceil_mode
    else:
        if node.op != "call_function" or function_name(node) not in ("max_pool2d", "_max_pool2d"):
            return None
        kernel = argument(node, 1, "kernel_size", None)
        stride = argument(node, 2, "stride", None)
        values = (kernel, stride, argument(node, 3, "padding", 0), argument(node, 4, "dilation", 1))
        ceil_mode = bool(argument(node, 5, "ceil_mode", False))
        if argument(node, 6, "return_indices", False):
            return None
    kernel, stride, padding, dilation = values
    stride = kernel if stride in (None, (), []) else stride
    size, step, border, spread = _pair(kernel), _pair(stride), _pair(padding), _pair(dilation)
    if size is None or step is None or border is None or spread is None:
        return None
    return MaxPool(size, step, border, spread, ceil_mode)


def mean_of(node: fx.Node, modules: dict[str, nn.Module]) -> bool | None:
    """Return whether a mean over height and width keeps them as ones, or None for anything else."""
    if node.op == "call_module":
        pool = modules[str(node.target)]
        is_global = type(pool) is nn.AdaptiveAvgPool2d and _pair(pool.output_size) == (1, 1)
        return True if is_global else None
    if not is_from_torch(node):
        return None
    name = function_name(node)
    if name == "adaptive_avg_pool2d":
        return True if _pair(argument(node, 1, "output_size", None)) == (1, 1) else None
    if name != "mean" or "dtype" in node.kwargs or "out" in node.kwargs:
        return None
    dims, keep = argument(node, 1, "dim", None), argument(node, 2, "keepdim", False)
    if not isinstance(dims, (tuple, list)) or not all(isinstance(d, int) for d in dims) or not isinstance(keep, bool):
        return None
    return keep if sorted(dims) in ([2, 3], [-2, -1]) else None


def _pair(value: Any) -> tuple[int, int] | None:
    items = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    items = items * 2 if len(items) == 1 else items
    return items if len(items) == 2 and all(isinstance(item, int) for item in items) else None


def is_integer_conv(module: nn.Module) -> bool:
    """Whether a module is a 2d convolution that integer kernels compute."""
    return (
        isinstance(module, SwitchableLayer)
        and isinstance(module, nn.Conv2d)
        and module.input_quantizer is not None
        and module.weight_quantizer.granularity != "group"
        and module.in_channels // module.groups * math.prod(module.kernel_size) <= MOST_PRODUCTS
        and _pads_zeros(module)
    )


def _pads_zeros(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" or not any(conv._reversed_padding_repeated_twice)


def is_integer_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer that integer kernels compute."""
    return isinstance(module, SwitchableLayer) and isinstance(module, nn.Linear) and module.input_quantizer is not None


def is_plain_conv(module: nn.Module) -> bool:
    """Whether a module is a float 2d convolution of PyTorch itself that pads with zeros."""
    return type(module) is nn.Conv2d and _pads_zeros(module)


_NORMS = {nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm), nn.Linear: (nn.BatchNorm1d,)}


def is_foldable(norm: nn.Module, layer: nn.Module) -> bool:
    """Whether a BatchNorm, of its own for each width or not, is an affine map of a layer's output channels.

    After a linear layer it is one on rows (N, C) only; of (N, L, C) it normalises L.
    """
    kinds = next((kinds for kind, kinds in _NORMS.items() if isinstance(layer, kind)), ())
    outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else getattr(layer, "out_features", None)
    # The copies have the class that the network was built with; one of another library may do more than normalise.
    copies: Any = norm.norms.values() if isinstance(norm, PerWidthNorm) else (norm,)
    return all(
        type(n) in kinds and n.running_mean is not None and n.num_features == outputs and not has_hooks(n)
        for n in copies
    )
