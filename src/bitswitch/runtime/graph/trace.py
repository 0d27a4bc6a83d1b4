"""Trace a prepared network with torch.fx: which operation feeds which, with quantized layers as single nodes."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.fx.proxy import Attribute

from bitswitch.layers.attention import ProjectedMultiheadAttention
from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.modes import in_mode
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.runtime.graph.kept import Kept
from bitswitch.runtime.graph.purity import IN_PLACE_OPERATORS, UntraceableError, has_hooks, simplify

# Retries of a trace, each with one more module that is not looked into.
_MAX_RETRIES = 64
_SIMPLE = (type(None), bool, int, float, str)


class _Proxy(fx.Proxy):
    """A proxy that records augmented assignments, of which those of torch.fx only see that a new value is computed."""

    def __getattr__(self, k: str) -> _Attribute:
        return _Attribute(self, k)


class _Attribute(_Proxy, Attribute):
    """An attribute of a value, which may be a method or a view of it."""


def _recorder(function: Callable[..., Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_function.__name__}__", _recorder(_function))


class _Tracer(fx.Tracer):
    """Look into modules down to layers, normalisations, what PyTorch brings, and modules given as opaque."""

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque
        self.entered: list[nn.Module] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        # Of these torch.fx would make plain ones.
        if type(a) is OrderedDict:
            return self.create_node("call_function", OrderedDict, (super().create_arg(list(a.items())),), {})
        if isinstance(a, (list, dict)) and type(a) not in (list, dict, immutable_list, immutable_dict):
            raise TypeError(f"a {type(a).__name__} has no place in a graph")
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (SwitchableLayer, PerWidthNorm, ProjectedMultiheadAttention)) or m in self.opaque:
            return True
        # What hooks do besides tensors would be done once, with values that are none.
        if has_hooks(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Left in place by an exception, so that the innermost module that cannot be traced is known.
        self.entered.append(m)
        before = torch.get_rng_state()
        result = super().call_module(m, forward, args, kwargs)
        _check_random(before)
        self.entered.pop()
        return result


def trace_network(model: nn.Module) -> fx.Graph:
    """Trace a network in evaluation mode.

    A module whose `forward` cannot be traced (control flow that depends on data) becomes one opaque node. Arguments of
    the network that have a default value are fixed at it. Operations in place are replaced by their pure form.

    Args:
        model: a prepared network; its mode is restored.

    Returns:
        The graph; the targets of its `call_module` nodes are names in `model`.

    Raises:
        UntraceableError: the network's own `forward` cannot be traced, or is not all that a call of it runs.
    """
    if isinstance(model, (SwitchableLayer, PerWidthNorm, ProjectedMultiheadAttention)):
        raise UntraceableError("the network is a single layer")
    # torch.fx calls the forward of its class, and nothing else.
    if has_hooks(model):
        raise UntraceableError("the network has hooks")
    if "forward" in model.__dict__:
        raise UntraceableError("the network has a forward of its own, not that of its class")
    names = {module: name for name, module in model.named_modules()}
    opaque: set[nn.Module] = set()
    for _ in range(_MAX_RETRIES):
        tracer = _Tracer(opaque)
        with in_mode(model, training=False), torch.no_grad(), torch.random.fork_rng(devices=()):
            kept = Kept(names, [m for m, name in names.items() if not name or not tracer.is_leaf_module(m, name)])
            found = _attempt(tracer, model)
            changed = kept.restore()
        if isinstance(found, Exception):
            if not tracer.entered:
                raise UntraceableError(f"torch.fx cannot trace it: {_first_line(found)}") from found
            opaque.add(tracer.entered[-1])
        elif changed:
            # Of the graph, too, what is computed once would be part.
            _check_owners(changed, names, opaque)
            opaque.update(changed)
        elif not _reads_values(found):
            # Hooks of its modules have what it returns.
            raise UntraceableError("what it returns does not come from the calls of its modules")
        else:
            simplify(found, dict(model.named_modules()))
            return found
    raise UntraceableError("too many of its modules cannot be traced")


def _attempt(tracer: _Tracer, model: nn.Module) -> fx.Graph | Exception:
    before = torch.get_rng_state()
    try:
        graph = tracer.trace(model, _fixed_arguments(model))
        _check_random(before)
    except Exception as error:  # anything at all may come out of a foreign forward
        return error
    return graph


def _check_owners(changed: list[nn.Module], names: dict[nn.Module, str], opaque: set[nn.Module]) -> None:
    """Refuse state that changes although the modules that hold it are not looked into, or cannot but be.

    Raises:
        UntraceableError: it is that of the network itself, or another module changes it.
    """
    for module in changed:
        if not names[module] or module in opaque:
            raise UntraceableError(f"{names[module] or 'it'} keeps state from call to call")


def _check_random(before: Tensor) -> None:
    """Refuse what has drawn random numbers in a trace, which would be the same ones in every call.

    Args:
        before: the state of PyTorch's generator before.

    Raises:
        UntraceableError: numbers have been drawn since.
    """
    if not torch.equal(before, torch.get_rng_state()):
        raise UntraceableError("it draws random numbers")


def _reads_values(graph: fx.Graph) -> bool:
    return any(node.op == "output" and node.all_input_nodes for node in graph.nodes)


def _first_line(error: Exception) -> str:
    # An assertion may come without a word.
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _fixed_arguments(model: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and isinstance(p.default, _SIMPLE)}
