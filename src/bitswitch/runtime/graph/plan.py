"""Turn a traced network into a plan: layers with all that their epilogues can compute, and what is left to PyTorch.

A plan is structure only. It holds for every precision and shape of inputs; operands and buffers are bound to it later.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from bitswitch.layers.base import SwitchableLayer
from bitswitch.runtime.graph.nodes import ConvNode, FloatConvNode, LinearNode, MeanNode, Node, PoolNode, TorchNode
from bitswitch.runtime.graph.operations import (
    clamp_of,
    is_foldable,
    is_integer_conv,
    is_integer_linear,
    is_plain_conv,
    max_pool_of,
    mean_of,
    summands_of,
)
from bitswitch.runtime.graph.purity import has_hooks

# Quantized copies that one kernel writes at most.
_MOST_COPIES = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """A network as a sequence of nodes.

    Attributes:
        arguments: names of the parameters of the network's `forward` that are inputs, and of their values.
        nodes: in an order of execution.
        output: what the network returns, with values as torch.fx nodes.
        code_readers: for each value that comes with codes, the convolutions (names of nodes) that read them.
        float_values: the values that are needed as float tensors.
        alone: quantized layers that are left to PyTorch, so run by themselves, also those inside other modules.
    """

    arguments: tuple[tuple[str, str], ...]
    nodes: tuple[Node, ...]
    output: Any
    code_readers: dict[str, tuple[str, ...]]
    float_values: frozenset[str]
    alone: tuple[str, ...]

    @property
    def output_values(self) -> tuple[str, ...]:
        """Names of the values in `output`."""
        names: list[str] = []
        map_arg(self.output, lambda node: names.append(node.name))
        return tuple(names)

    def takes_codes(self, node: ConvNode) -> bool:
        """Whether a convolution's input comes as its codes."""
        return node.name in self.code_readers.get(node.source, ())


def make_plan(graph: fx.Graph, model: nn.Module, separate: Collection[str] = ()) -> Plan:
    """Make the plan of a traced network.

    Args:
        graph: from `bitswitch.runtime.graph.trace.trace_network`.
        model: the prepared network that was traced.
        separate: names in the graph of layers, additions and poolings that are left to PyTorch.
    """
    modules = dict(model.named_modules())
    builder = _Builder(modules, frozenset(separate))
    nodes = builder.build(graph)
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    parameters = list(inspect.signature(model.forward).parameters)
    arguments = tuple(
        (str(node.target), node.name)
        for node in graph.nodes
        if node.op == "placeholder" and str(node.target) in parameters
    )
    alone = tuple(name for node in nodes if isinstance(node, TorchNode) for name in _layers_of(node, modules))
    return Plan(arguments, nodes, output, *_edges(nodes, output), alone)


def _layers_of(node: TorchNode, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Return the names of the quantized layers that a node runs: what it calls, or is inside of that."""
    if node.operation.op == "call_module":
        called = str(node.operation.target)
        for name, module in modules[called].named_modules(prefix=called):
            if isinstance(module, SwitchableLayer):
                yield name


class _Builder:
    """Walk the graph and give every layer what follows it, as far as nothing else reads what is between."""

    def __init__(self, modules: dict[str, nn.Module], separate: frozenset[str]) -> None:
        self.modules = modules
        self.separate = separate
        self.order: dict[fx.Node, int] = {}
        # The last node computed by each layer, so where the layer stands in the plan, and what it then is.
        self.ends: dict[fx.Node, Node] = {}
        self.absorbed: set[fx.Node] = set()

    def build(self, graph: fx.Graph) -> tuple[Node, ...]:
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        # From the end, so that of two layers that could do an addition the later one does.
        for node in reversed(graph.nodes):
            if node.op == "call_module" and node not in self.absorbed:
                self._start(node)
        return tuple(self._in_order(graph))

    def _start(self, node: fx.Node) -> None:
        module = self.modules[str(node.target)]
        source = _only_input(node)
        if source is None or node.name in self.separate or has_hooks(module):
            return
        if is_integer_conv(module):
            self._fuse(node, source, ConvNode, residual=True)
        elif is_integer_linear(module):
            self._fuse(node, source, LinearNode, residual=False)
        elif is_plain_conv(module) and (norm := self._norm_after(node)) is not None:
            clamp, end = self._clamp_after(norm)
            self._absorb(node, norm, end)
            self.ends[end] = FloatConvNode(end.name, str(node.target), node.name, source.name, str(norm.target), clamp)

    def _fuse(self, node: fx.Node, source: fx.Node, kind: Callable[..., Node], *, residual: bool) -> None:
        norm = self._norm_after(node)
        end = node if norm is None else norm
        options: dict[str, Any] = {"norm": None if norm is None else str(norm.target)}
        added = self._addition_after(end) if residual else None
        if added is not None:
            addition, other = added
            options.update(residual=other.name, addition=addition.name)
            self._absorb(node, norm, addition)
            end = addition
        options["clamp"], last = self._clamp_after(end)
        self._absorb(node, norm, end, last)
        self.ends[last] = kind(last.name, str(node.target), node.name, source.name, **options)

    def _absorb(self, *nodes: fx.Node | None) -> None:
        self.absorbed.update(node for node in nodes if node is not None)

    def _next(self, node: fx.Node) -> fx.Node | None:
        """Return the only reader of a node, if it is free."""
        if len(node.users) != 1:
            return None
        reader = next(iter(node.users))
        hooked = reader.op == "call_module" and has_hooks(self.modules[str(reader.target)])
        return None if hooked or reader in self.absorbed or reader.op == "output" else reader

    def _norm_after(self, node: fx.Node) -> fx.Node | None:
        reader = self._next(node)
        if reader is None or reader.op != "call_module":
            return None
        return reader if is_foldable(self.modules[str(reader.target)], self.modules[str(node.target)]) else None

    def _addition_after(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        reader = self._next(node)
        summands = None if reader is None else summands_of(reader)
        if reader is None or summands is None or reader.name in self.separate:
            return None
        other = summands[0] if summands[1] is node else summands[1]
        return None if other is node else (reader, other)

    def _clamp_after(self, node: fx.Node) -> tuple[tuple[float, float] | None, fx.Node]:
        reader = self._next(node)
        clamp = None if reader is None else clamp_of(reader, self.modules)
        return (clamp, reader) if reader is not None and clamp is not None else (None, node)

    def _in_order(self, graph: fx.Graph) -> Iterator[Node]:
        for node in graph.nodes:
            if node in self.ends:
                yield self.ends[node]
            elif node not in self.absorbed and node.op not in ("placeholder", "output"):
                yield self._single(node)

    def _single(self, node: fx.Node) -> Node:
        inputs = tuple(item.name for item in node.all_input_nodes)
        hooked = node.op == "call_module" and has_hooks(self.modules[str(node.target)])
        if len(inputs) == 1 and node.name not in self.separate and not hooked:
            pool, keep = max_pool_of(node, self.modules), mean_of(node, self.modules)
            if pool is not None:
                return PoolNode(node.name, inputs[0], pool)
            if keep is not None:
                return MeanNode(node.name, inputs[0], keep)
        return TorchNode(node.name, node, inputs)


def _only_input(node: fx.Node) -> fx.Node | None:
    """Return the input of a module that is called with one tensor and nothing else."""
    values = [*node.args, *node.kwargs.values()]
    return values[0] if len(values) == 1 and isinstance(values[0], fx.Node) else None


def _edges(nodes: tuple[Node, ...], output: Any) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """Decide for every value whether it is passed on as codes (to whom), as a float tensor, or both."""
    gives_codes = {
        node.name
        for node in nodes
        if isinstance(node, (ConvNode, PoolNode)) or (isinstance(node, MeanNode) and node.keep)
    }
    readers: dict[str, list[str]] = {}
    floats: set[str] = set()
    for node in nodes:
        for name in node.inputs:
            by_codes = isinstance(node, ConvNode) and name == node.source and name in gives_codes
            if by_codes and len(readers.get(name, ())) < _MOST_COPIES:
                readers.setdefault(name, []).append(node.name)
            else:
                floats.add(name)
        if isinstance(node, ConvNode) and node.residual == node.source:
            floats.add(node.source)
    map_arg(output, lambda node: floats.add(node.name))
    return {name: tuple(items) for name, items in readers.items()}, frozenset(floats)
