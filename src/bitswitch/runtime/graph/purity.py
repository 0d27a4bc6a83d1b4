"""Bring a traced network into a form in which every operation computes a new value from values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn


class UntraceableError(Exception):
    """A network cannot be turned into a graph; the engine then runs it module by module. The message says why."""


def simplify(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Remove what does nothing in evaluation mode and what nothing reads, and give operations in place their pure form.

    Args:
        graph: a traced network; changed in place.
        modules: the network's modules by name.

    Raises:
        UntraceableError: an operation in place has no pure form.
    """
    for node in reversed(graph.nodes):
        if node.op == "call_function" and "assert" in getattr(node.target, "__name__", ""):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if _does_nothing(node, modules) and node.args and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    _make_pure(graph, modules)
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def _does_nothing(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], (nn.Identity, nn.modules.dropout._DropoutNd))
    if node.op != "call_function":
        return False
    position = {"dropout": 2, "dropout1d": 2, "dropout2d": 2, "dropout3d": 2, "stochastic_depth": 3}.get(
        function_name(node)
    )
    return position is not None and argument(node, position, "training", True) is False


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """Return an argument of a traced call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


_IN_PLACE_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
# May return a view of an argument, so that a change of one is a change of the other.
_VIEWS = frozenset(
    """
    getitem view reshape flatten squeeze unsqueeze transpose permute chunk split tensor_split unbind select narrow
    expand contiguous to float detach movedim swapaxes unflatten t view_as reshape_as dropout stochastic_depth
    """.split()  # noqa: SIM905
)
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


def function_name(node: fx.Node) -> str:
    """Return the plain name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes one of its arguments."""
    if node.op == "call_module":
        return bool(getattr(modules.get(str(node.target)), "inplace", False))
    if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        return True
    name = function_name(node)
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("setitem", "delitem") or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def may_view(node: fx.Node, modules: Mapping[str, Any]) -> bool:
    """Whether the result of a node may share memory with an argument."""
    if node.op == "call_module":
        return isinstance(modules.get(str(node.target)), _VIEW_MODULES)
    return node.op in ("call_function", "call_method") and function_name(node) in _VIEWS


def _make_pure(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Replace operations in place: later readers of what they changed read their result instead.

    Raises:
        UntraceableError: an operation in place changes what is also read through another view.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op in ("placeholder", "get_attr", "output") or not _is_in_place(node, modules):
            continue
        changed = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(changed, fx.Node) or function_name(node) in ("setitem", "delitem") or "out" in node.kwargs:
            raise UntraceableError(f"{node.name} changes a tensor in place")
        others = _alias_set(changed, modules) - {changed}
        if any(order[user] > order[node] for alias in others for user in alias.users):
            raise UntraceableError(f"{node.name} changes a tensor in place that is also read through a view")
        changed.replace_all_uses_with(node, delete_user_cb=lambda user, at=order[node]: order[user] > at)
        _make_node_pure(node)


def _alias_set(node: fx.Node, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """Return all nodes that may share memory with a node."""
    found, todo = {node}, [node]
    while todo:
        item = todo.pop()
        near = [user for user in item.users if may_view(user, modules)]
        if may_view(item, modules):
            near += item.all_input_nodes
        todo += [n for n in near if n not in found]
        found.update(near)
    return found


def _make_node_pure(node: fx.Node) -> None:
    """Give a node the pure form of its operation; modules with `inplace` are made pure where they are run."""
    if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        node.target = _IN_PLACE_OPERATORS[node.target]
    elif node.op == "call_method" and str(node.target).endswith("_"):
        node.target = str(node.target)[:-1]
    elif node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_function":
        pure = getattr(torch, function_name(node)[:-1], None) or getattr(nn.functional, function_name(node)[:-1], None)
        if pure is None:
            raise UntraceableError(f"{node.name} changes a tensor in place")
        node.target = pure
