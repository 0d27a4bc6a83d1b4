"""Run a network once and see which layer feeds which, and which inputs cannot be negative."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from bitswitch.layers.modes import in_mode

# Functions whose result is never negative, whatever they are given.
_PRODUCE_NONNEGATIVE = frozenset(
    "relu relu6 sigmoid hardsigmoid softmax abs square exp softplus one_hot".split()  # noqa: SIM905
)
# Functions whose result is not negative if none of their tensors is.
_KEEP_NONNEGATIVE = frozenset(
    """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d boolean_dispatch fn flatten reshape
    view permute transpose swapaxes contiguous dropout dropout1d dropout2d dropout3d feature_dropout cat
    concat concatenate stack add mul mean sum amax max getitem chunk split tensor_split unbind squeeze unsqueeze to
    clone detach expand repeat repeat_interleave roll flip movedim narrow
    select pixel_shuffle pixel_unshuffle channel_shuffle
    sqrt float half bfloat16 type_as unflatten iadd imul
    """.split()  # noqa: SIM905
)

_ARITHMETIC = ("add", "mul", "iadd", "imul")

# Functions that make a tensor of the form of one that they are given: they read its shape, type or device, no values.
_LIKE = frozenset(
    """
    empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_zeros new_ones new_full
    new_tensor
    """.split()  # noqa: SIM905
)
# Functions that give their first tensor the form of another one.
_TAKE_FORM = frozenset("to type_as view_as expand_as reshape_as".split())  # noqa: SIM905


@dataclass(frozen=True)
class _Origin:
    """What is known of a tensor: the nodes whose outputs it was computed from, and whether it may be negative."""

    sources: frozenset[str] = frozenset()
    nonnegative: bool = False


@dataclass
class Graph:
    """What a traced run saw of the nodes (weighted layers and normalisations).

    Attributes:
        predecessors: the nodes that feed each executed node, through anything that is no node; in order of execution.
        nonnegative: whether all inputs that a node saw are known not to be negative.
        read_elsewhere: the nodes whose weight a function was given while no node that holds it was executed.
    """

    predecessors: dict[str, set[str]] = field(default_factory=dict)
    nonnegative: dict[str, bool] = field(default_factory=dict)
    read_elsewhere: set[str] = field(default_factory=set)

    @cached_property
    def successors(self) -> dict[str, set[str]]:
        """The reverse of `predecessors`, once those are complete."""
        result: dict[str, set[str]] = {name: set() for name in self.predecessors}
        for name, sources in self.predecessors.items():
            for source in sources:
                result[source].add(name)
        return result


def _function_name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", "").strip("_")


def _is_nonnegative(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[_Origin | None]) -> bool:
    if name in _PRODUCE_NONNEGATIVE:
        return True
    if name == "threshold":
        given = [kwargs.get(key, args[i] if len(args) > i else None) for i, key in ((1, "threshold"), (2, "value"))]
        return all(isinstance(bound, (int, float)) and bound >= 0 for bound in given)
    if name in ("hardtanh", "clamp", "clip", "clamp_min"):
        low = kwargs.get("min_val", kwargs.get("min", args[1] if len(args) > 1 else None))
        return isinstance(low, (int, float)) and low >= 0
    if name not in _KEEP_NONNEGATIVE:
        return False
    # Summands, factors and alpha=.
    scalars = [a for a in (*args, *kwargs.values()) if isinstance(a, Real)] if name in _ARITHMETIC else []
    return all(origin is not None and origin.nonnegative for origin in tensors) and all(float(s) >= 0 for s in scalars)


def _reads_values(name: str, args: tuple[Any, ...], tensor: Tensor, result: Any) -> bool:
    """Whether a function makes tensors of the values of one that it is given, and not of its shape, type or device."""
    if name in _LIKE or (name in _TAKE_FORM and args and args[0] is not tensor):
        return False
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result))


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor, or what shares its memory, has been changed in place."""
    return 0 if tensor.is_inference() else tensor._version


class _Tracer(TorchFunctionMode):
    """Follow tensors through functions; nodes are entered and left by hooks, and nothing inside one is followed.

    Args:
        holders: the nodes that hold each weight, by its id.
    """

    def __init__(self, holders: Mapping[int, set[str]]) -> None:
        super().__init__()
        self.graph = Graph()
        self._holders = holders
        # The nodes being executed, outermost first.
        self._inside: list[str] = []
        # Held by identity together with the tensor, so that no id is used again while it is known.
        self._origins: dict[int, tuple[Tensor, _Origin]] = {}

    def origin(self, tensor: Tensor) -> _Origin | None:
        known = self._origins.get(id(tensor))
        return known[1] if known else None

    def mark(self, value: Any, origin: _Origin) -> None:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                self._origins[id(leaf)] = (leaf, origin)

    def sources(self, value: Any) -> frozenset[str]:
        origins = (self.origin(leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
        return frozenset().union(*(origin.sources for origin in origins if origin))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = [version_of(tensor) for tensor in given]
        result = func(*args, **kwargs)
        for tensor in given:
            holders = self._holders.get(id(tensor), set())
            if holders.isdisjoint(self._inside) and _reads_values(_function_name(func), args, tensor, result):
                self.graph.read_elsewhere |= holders
        if not self._inside:
            origins = [self.origin(tensor) for tensor in given]
            if any(origins):
                nonnegative = _is_nonnegative(_function_name(func), args, kwargs, origins)
                # An assignment to a part of a tensor returns nothing; it changes its first argument.
                changed = args[0] if _function_name(func) == "setitem" else result
                if not nonnegative:
                    self._doubt([t for t, version in zip(given, before, strict=True) if version_of(t) != version])
                self.mark(changed, _Origin(self.sources((args, kwargs)), nonnegative))
        return result

    def _doubt(self, changed: list[Tensor]) -> None:
        """Take what shares memory with tensors that were changed in place for possibly negative."""
        memory = {tensor.untyped_storage().data_ptr() for tensor in changed}
        for key, (tensor, origin) in list(self._origins.items()) if memory else ():
            if tensor.untyped_storage().data_ptr() in memory:
                self._origins[key] = (tensor, _Origin(origin.sources))

    def enter(self, name: str, inputs: Any) -> None:
        if not self._inside:
            self.graph.predecessors.setdefault(name, set()).update(self.sources(inputs))
            origins = [self.origin(leaf) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
            nonnegative = bool(origins) and all(origin is not None and origin.nonnegative for origin in origins)
            self.graph.nonnegative[name] = self.graph.nonnegative.get(name, True) and nonnegative
        self._inside.append(name)

    def leave(self, name: str, output: Any) -> None:
        self._inside.pop()
        if not self._inside:
            self.mark(output, _Origin(frozenset({name})))


def _hooks(tracer: _Tracer, nodes: Iterable[tuple[str, nn.Module]]) -> Iterator[Any]:
    for name, module in nodes:

        def before(_module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            tracer.enter(name, (args, kwargs))

        def after(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            tracer.leave(name, output)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)


def trace(model: nn.Module, nodes: list[tuple[str, nn.Module]], run: Callable[[nn.Module], Any]) -> Graph:
    """Run the model once in evaluation mode and return what feeds what.

    Args:
        model: the network; its mode is restored.
        nodes: (name, module) of the layers and normalisations to see.
        run: calls the model on example inputs.
    """
    holders: dict[int, set[str]] = {}
    for name, module in nodes:
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), set()).add(name)
    tracer = _Tracer(holders)
    handles = list(_hooks(tracer, nodes))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fast path of torch.nn's encoder layers reads weights instead of calling layers.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with in_mode(model, training=False), torch.no_grad(), tracer:
            run(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    return tracer.graph
