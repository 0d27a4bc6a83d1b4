"""Trace a prepared network with torch.fx: which operation feeds which, with quantized layers as single nodes."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.fx.proxy import Attribute, TraceError

from bitswitch.layers.attention import ProjectedMultiheadAttention
from bitswitch.layers.base import SwitchableLayer
from bitswitch.layers.modes import in_mode
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.runtime.graph.kept import Kept
from bitswitch.runtime.graph.purity import IN_PLACE_OPERATORS, UntraceableError, has_hooks, simplify

# Retries of a trace, each with one more module that is not looked into.
_MAX_RETRIES = 64
# Modules of Python that pass the question of `isinstance` on, and what code that asks has in it.
_BETWEEN = ("abc", "typing")
_ASKING = frozenset(["isinstance", "issubclass", "__class__"])
# Not what it is when a trace begins, which may be during that of another thread.
_IS_TENSOR = torch.is_tensor
_SIMPLE = (type(None), bool, int, float, str)


def _is_foreign(frame: FrameType | None, names: frozenset[str]) -> bool:
    """Whether code that is not PyTorch's asks, and has one of some names in it."""
    while frame is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    if frame is None or str(frame.f_globals.get("__name__")).split(".")[0] in ("torch", "bitswitch"):
        return False
    return bool(names & set(frame.f_code.co_names))


def _class_for(value: _Proxy) -> type:
    """Return the class of a proxy to torch.fx and to compiled code; nobody else may take it for that of a value.

    `isinstance` asks for it where the type is not what it looks for. Code that calls it names it.
    """
    return _refuse(value) if _is_foreign(sys._getframe(1), _ASKING) else type(value)


def _is_tensor(obj: Any) -> bool:
    """Take the place of `torch.is_tensor` during a trace."""
    if isinstance(obj, _Proxy) and _is_foreign(sys._getframe(1), frozenset(["is_tensor"])):
        _refuse(obj)
    return isinstance(obj, Tensor)


def _refuse(value: _Proxy) -> NoReturn:
    tracer: Any = value.tracer
    tracer.refuse()
    raise TraceError("the class of a value is not known")


class _Proxy(fx.Proxy):
    """A proxy that records augmented assignments, of which those of torch.fx only see that a new value is computed."""

    __class__ = property(_class_for)  # pyright: ignore[reportIncompatibleMethodOverride]

    def __len__(self) -> int:
        self.tracer.refuse()  # pyright: ignore[reportAttributeAccessIssue]
        return fx.Proxy.__len__(self)

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
        # Modules (None: the network) that asked for what a trace does not know. They may have caught the exception.
        self.refused: list[nn.Module | None] = []

    def refuse(self) -> None:
        """Note that a value was asked for something that it is not known to have."""
        self.refused.append(self.entered[-1] if self.entered else None)

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.refuse()
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        self.refuse()
        return super().iter(obj)

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
        depth = len(self.entered)
        self.entered.append(m)
        before = torch.get_rng_state()
        result = super().call_module(m, forward, args, kwargs)
        _check_random(before)
        del self.entered[depth:]
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
    _check_root(model)
    names = {module: name for name, module in model.named_modules()}
    opaque: set[nn.Module] = set()
    for _ in range(_MAX_RETRIES):
        tracer = _Tracer(opaque)
        with in_mode(model, training=False), torch.no_grad(), torch.random.fork_rng(devices=()):
            kept = Kept(names, [m for m, name in names.items() if not name or not tracer.is_leaf_module(m, name)])
            found = _attempt(tracer, model)
            changed = kept.restore()
        if isinstance(found, Exception) or tracer.refused:
            opaque.add(_culprit(tracer, found))
        elif changed:
            # What it was in the trace would be a constant of the graph.
            _check_owners(changed, names, opaque)
            opaque.update(changed)
        elif not _reads_values(found):
            # Hooks of its modules have what it returns.
            raise UntraceableError("what it returns does not come from the calls of its modules")
        else:
            simplify(found, dict(model.named_modules()))
            return found
    raise UntraceableError("too many of its modules cannot be traced")


def _check_root(model: nn.Module) -> None:
    if isinstance(model, (SwitchableLayer, PerWidthNorm, ProjectedMultiheadAttention)):
        raise UntraceableError("the network is a single layer")
    # torch.fx calls the forward of its class, and nothing else.
    if has_hooks(model):
        raise UntraceableError("the network has hooks")
    if "forward" in model.__dict__:
        raise UntraceableError("the network has a forward of its own, not that of its class")


def _attempt(tracer: _Tracer, model: nn.Module) -> fx.Graph | Exception:
    before = torch.get_rng_state()
    try:
        torch.is_tensor = _is_tensor  # pyright: ignore[reportAttributeAccessIssue]
        graph = tracer.trace(model, _fixed_arguments(model))
        _check_random(before)
    except Exception as error:  # anything at all may come out of a foreign forward
        return error
    finally:
        torch.is_tensor = _IS_TENSOR
    return graph


def _culprit(tracer: _Tracer, found: fx.Graph | Exception) -> nn.Module:
    """Return the innermost module that cannot be traced.

    Raises:
        UntraceableError: it is the network itself.
    """
    culprit = tracer.refused[0] if tracer.refused else tracer.entered[-1] if tracer.entered else None
    if culprit is None:
        error = found if isinstance(found, Exception) else None
        reason = "it catches what a trace raises" if error is None else _first_line(error)
        raise UntraceableError(f"torch.fx cannot trace it: {reason}") from error
    return culprit


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
    line = next(iter(str(error).splitlines()), type(error).__name__)[:200]
    # What torch.fx runs into when it patches the code of the decorator in place of that of the forward.
    return "its forward takes *args or **kwargs behind a decorator" if "co_varnames" in line else line


def _fixed_arguments(model: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and isinstance(p.default, _SIMPLE)}
