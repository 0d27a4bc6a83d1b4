"""Bring a traced network into a form in which every operation computes a new value from values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.norm import PerWidthNorm


class UntraceableError(Exception):
    """A network cannot be turned into a graph; the engine then runs it module by module. The message says why."""


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def simplify(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Remove what does nothing in evaluation mode and what nothing reads, and give operations in place their pure form.

    Args:
        graph: a traced network; changed in place.
        modules: the network's modules by name.

    Raises:
        UntraceableError: an operation in place has no pure form, or the network asks where values are in memory.
    """
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and function_name(node) in _OF_MEMORY:
            # Values of a graph are not where, and not in the order in which, those of the network are.
            raise UntraceableError(f"{node.name} asks how a tensor is laid out in memory")
    for node in reversed(graph.nodes):
        if node.op == "call_function" and "assert" in getattr(node.target, "__name__", ""):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if _does_nothing(node, modules) and node.args and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    _make_pure(graph, modules)
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users and not _may_do_more(node, modules):
            graph.erase_node(node)


def _may_do_more(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a call may do something besides returning a value: of modules that are not known, or with hooks."""
    if node.op != "call_module":
        return False
    module = modules[str(node.target)]
    return not _is_known(module) or any(has_hooks(inner) for inner in module.modules())


def _is_known(module: nn.Module) -> bool:
    return isinstance(module, (SwitchableLayer, PerWidthNorm)) or type(module).__module__.startswith("torch.nn.")


def _does_nothing(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)) and not has_hooks(module)
    if node.op != "call_function":
        return False
    position = {"dropout": 2, "dropout1d": 2, "dropout2d": 2, "dropout3d": 2, "stochastic_depth": 3}.get(
        function_name(node)
    )
    return position is not None and argument(node, position, "training", True) is False


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """Return an argument of a traced call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


IN_PLACE_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}
"""Augmented assignments, and what they compute."""
KEEPS_TYPE = "bitswitch_keeps_type"
"""Mark of nodes whose result has the type of their first argument."""
_IN_PLACE_METHODS = frozenset(f"__{function.__name__}__" for function in IN_PLACE_OPERATORS)
# Return a view of an argument, or the argument itself, and do nothing else.
_VIEWS = frozenset(
    """
    getitem view reshape flatten squeeze unsqueeze transpose permute chunk split tensor_split unbind select narrow
    expand contiguous to float detach movedim swapaxes unflatten t view_as reshape_as dropout stochastic_depth
    """.split()  # noqa: SIM905
)
# Return new memory whatever their arguments are. What is in neither list may do either.
_FRESH = frozenset(
    """
    add sub mul truediv div floordiv mod pow neg abs square sqrt rsqrt exp log sin cos erf reciprocal floor ceil round
    sign eq ne lt le gt ge and_ or_ xor invert where maximum minimum clamp clip clamp_min clamp_max
    matmul mm bmm addmm baddbmm linear bilinear scaled_dot_product_attention multi_head_attention_forward
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding
    batch_norm layer_norm group_norm instance_norm normalize
    relu relu6 elu selu celu gelu silu mish leaky_relu prelu hardtanh hardswish hardsigmoid sigmoid tanh softmax
    log_softmax softplus softsign logsigmoid glu
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate pad grid_sample
    sum mean amax amin argmax argmin max min var std norm cumsum prod logsumexp topk sort
    cat concat stack clone repeat repeat_interleave flip roll gather index_select masked_fill one_hot
    zeros_like ones_like full_like new_zeros new_ones new_full
    """.split()  # noqa: SIM905
)
_OF_MEMORY = frozenset({"stride", "as_strided", "storage_offset", "is_contiguous", "data_ptr"})
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
_MAY_VIEW_MODULES = (*_VIEW_MODULES, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
_NUMBERS = frozenset(["shape", "ndim", "dtype", "device", "size", "dim", "ndimension", "numel", "nelement"])


def function_name(node: fx.Node) -> str:
    """Return the plain name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def is_from_torch(node: fx.Node) -> bool:
    """Whether a node calls a method, or a function or operator that is PyTorch's or Python's own."""
    if node.op == "call_method":
        return True
    module = getattr(node.target, "__module__", None) or "torch"
    return node.op == "call_function" and module.split(".")[0] in ("torch", "_operator")


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes one of its arguments."""
    if node.op == "call_module":
        return bool(getattr(modules.get(str(node.target)), "inplace", False))
    if node.op == "call_function" and node.target in IN_PLACE_OPERATORS:
        return True
    name = function_name(node)
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE_METHODS
    return in_place or name in ("setitem", "delitem") or bool(node.kwargs.get("inplace")) or _has_out(node)


def _has_out(node: fx.Node) -> bool:
    return node.kwargs.get("out") is not None


def may_view(node: fx.Node, modules: Mapping[str, Any]) -> bool:
    """Whether a node does nothing but to return a view of an argument, or possibly a copy of it."""
    if node.op == "call_module":
        return isinstance(modules.get(str(node.target)), _VIEW_MODULES)
    return node.op in ("call_function", "call_method") and function_name(node) in _VIEWS


def _is_fresh(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the result of a node certainly shares no memory with its arguments."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        changes = getattr(module, "inplace", False) or module._forward_hooks
        return _is_known(module) and not changes and not isinstance(module, _MAY_VIEW_MODULES)
    return is_from_torch(node) and function_name(node) in _FRESH and not node.kwargs.get("inplace")


def _is_number(node: fx.Node) -> bool:
    """Whether a node is a number or a tuple of them, of which an augmented assignment makes a new one."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _NUMBERS
    if node.op == "call_method":
        return node.target in _NUMBERS
    inputs = node.all_input_nodes
    computed = node.op == "call_function" and getattr(node.target, "__module__", None) == "_operator"
    return computed and bool(inputs) and all(_is_number(item) for item in inputs)


def _make_pure(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Replace operations in place: later readers of what they changed read their result instead.

    Raises:
        UntraceableError: an operation in place changes what the network holds, or what may also be read through another
            view.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op in ("placeholder", "get_attr", "output") or not _is_in_place(node, modules):
            continue
        changed = node.args[0] if node.args else node.kwargs.get("input")
        unknown = function_name(node) in ("setitem", "delitem", *_IN_PLACE_METHODS) or _has_out(node)
        if not isinstance(changed, fx.Node) or unknown:
            raise UntraceableError(f"{node.name} changes a tensor in place")
        if not _is_number(changed):
            aliases = _aliases(changed, modules, {item for item in order if order[item] < order[node]})
            if any(item.op == "get_attr" for item in aliases):
                raise UntraceableError(f"{node.name} changes a tensor of the network in place")
            if any(order[user] > order[node] for item in aliases - {changed} for user in item.users):
                raise UntraceableError(f"{node.name} changes a tensor in place that is also read through a view")
            changed.replace_all_uses_with(node, delete_user_cb=lambda user, at=order[node]: order[user] > at)
        _make_node_pure(node)


def _aliases(node: fx.Node, modules: dict[str, nn.Module], among: set[fx.Node]) -> set[fx.Node]:
    """Return all nodes that may share memory with a node, among some."""
    found, todo = {node}, [node]
    while todo:
        item = todo.pop()
        near = [user for user in item.users if user in among and not _is_fresh(user, modules)]
        if not _is_fresh(item, modules):
            near += item.all_input_nodes
        todo += [n for n in near if n not in found]
        found.update(near)
    return found


def _make_node_pure(node: fx.Node) -> None:
    """Give a node the pure form of its operation; modules with `inplace` are made pure where they are run.

    The result has the type of the tensor that was changed, which is for who runs the node to see to.
    """
    node.meta[KEEPS_TYPE] = True
    if node.op == "call_function" and node.target in IN_PLACE_OPERATORS:
        node.target = IN_PLACE_OPERATORS[node.target]  # pyright: ignore[reportArgumentType]
    elif node.op == "call_method" and str(node.target).endswith("_"):
        node.target = str(node.target)[:-1]
    elif node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_function":
        pure = getattr(torch, function_name(node)[:-1], None) or getattr(nn.functional, function_name(node)[:-1], None)
        if pure is None:
            raise UntraceableError(f"{node.name} changes a tensor in place")
        node.target = pure
