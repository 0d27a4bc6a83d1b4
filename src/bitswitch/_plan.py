"""Decide, for every layer of a float model, whether and how it is quantized."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from bitswitch._bare import bare_matrices, bare_rows, in_order, small
from bitswitch._ties import NOT_REACHED, SHARES, count_float_weights, is_called, settle_shared_weights
from bitswitch._trace import Graph
from bitswitch.errors import ArgumentError, BitswitchWarning, PrepareError
from bitswitch.layers.norm import is_batch_norm
from bitswitch.layers.registry import has_weight, why_not
from bitswitch.layers.table import LayerEntry, LayerTable, QuantizerOptions
from bitswitch.quantizers import GRANULARITIES

Selector = str | type[nn.Module]

# That code would compute with the float weight in training and with the quantized one once it is stored.
READ_ELSEWHERE = "its weight is read by other code too"


@dataclass(frozen=True)
class Request:
    """What a user asked of `prepare`, checked. See there for the meaning of the fields."""

    bits: tuple[int, ...]
    skip: tuple[Selector, ...]
    force: tuple[Selector, ...]
    first_last: str | int
    granularity: str
    group_size: int | None
    granularity_of: tuple[tuple[str, str], ...]
    activations: bool
    batch_norm: str
    options: QuantizerOptions


def selectors(argument: str, value: Selector | Collection[Selector]) -> tuple[Selector, ...]:
    """Check a skip= or force= argument and return it as a tuple."""
    items = (value,) if isinstance(value, (str, type)) else tuple(value)
    for item in items:
        if not isinstance(item, str) and not (isinstance(item, type) and issubclass(item, nn.Module)):
            raise ArgumentError(f"{argument} takes layer names, patterns such as 'layer1.*', or classes; got {item!r}")
    return items


def _matches(selector: Selector, name: str, module: nn.Module, original: type[nn.Module]) -> bool:
    if isinstance(selector, type):
        return isinstance(module, selector) or issubclass(original, selector)
    return fnmatchcase(name, selector) or name.startswith(f"{selector}.")


def weighted_nodes(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return (name, module) of every weighted layer and BatchNorm of a model, each module once."""
    return [(name, m) for name, m in model.named_modules() if has_weight(m) or is_batch_norm(m)]


def build_table(model: nn.Module, graph: Graph, request: Request) -> LayerTable:
    """Return the layer table of a float model.

    Args:
        model: the float model; not changed.
        graph: what a traced run of it saw.
        request: what the user asked for.

    Raises:
        PrepareError: a selector matches nothing, a forced layer cannot be quantized, or nothing is left to quantize.
    """
    nodes = weighted_nodes(model)
    _check_selectors(model, nodes, request)
    weighted = {name: module for name, module in nodes if has_weight(module)}
    entries = {name: _decide(name, module, graph, weighted, request) for name, module in weighted.items()}
    forced = {name for name, module in weighted.items() if _selected(request.force, name, module) is not None}
    floating = {name for name, module in weighted.items() if _input_stays_float(module, request)}
    settle_shared_weights(entries, weighted, forced, floating)
    count_float_weights(entries, weighted)
    if not any(entry.status == "quantized" for entry in entries.values()):
        reasons = "; ".join(f"{entry.name or '(the model)'}: {entry.reason}" for entry in list(entries.values())[:5])
        raise PrepareError(f"no layer of this model would be quantized ({reasons or 'it has no weighted layers'})")
    for name, module in nodes:
        if name not in weighted:
            entries[name] = _norm_entry(name, module, graph, entries, request)
    entries |= bare_rows(model, lambda name, module: _selected(request.skip, name, module) is not None)
    _warn(entries, small(entries.values()))
    return LayerTable(in_order(model, entries))


def _check_selectors(model: nn.Module, nodes: list[tuple[str, nn.Module]], request: Request) -> None:
    layers = [(name, module) for name, module in nodes if has_weight(module)]
    # What cannot be quantized in any case can be skipped, which says that one knows.
    skippable = [*layers, *((name, module) for name, module, _ in bare_matrices(model))]
    for argument, items, given in (("skip", request.skip, skippable), ("force", request.force, layers)):
        for item in items:
            if not any(_matches(item, name, module, type(module)) for name, module in given):
                shown = item if isinstance(item, str) else item.__name__
                raise PrepareError(f"{argument}={shown!r} matches no layer with weights in this model")
    for pattern, _ in request.granularity_of:
        if not any(_matches(pattern, name, module, type(module)) for name, module in layers):
            raise PrepareError(f"granularity for {pattern!r} matches no layer with weights in this model")


def _selected(items: tuple[Selector, ...], name: str, module: nn.Module) -> Selector | None:
    return next((item for item in items if _matches(item, name, module, type(module))), None)


def _reach(name: str, edges: Mapping[str, set[str]], weighted: Mapping[str, nn.Module]) -> bool:
    """Whether another weighted layer can be reached from a node along the edges."""
    seen, todo = {name}, list(edges.get(name, ()))
    while todo:
        node = todo.pop()
        if node in weighted and node != name:
            return True
        if node not in seen:
            seen.add(node)
            todo.extend(edges.get(node, ()))
    return False


def _decide(
    name: str, module: nn.Module, graph: Graph, weighted: Mapping[str, nn.Module], request: Request
) -> LayerEntry:
    """Return the row of one weighted layer, shared weights aside."""
    weight = module._parameters.get("weight")
    shape = tuple(weight.shape) if weight is not None and not isinstance(weight, nn.UninitializedParameter) else ()
    row = LayerEntry(name=name, kind=type(module).__name__, status="float", shape=shape)
    forced = _selected(request.force, name, module) is not None
    skipped = _selected(request.skip, name, module)
    obstacle = why_not(module) or (None if name in graph.predecessors else NOT_REACHED)
    read_elsewhere = name in graph.read_elsewhere
    if obstacle is not None or (forced and read_elsewhere):
        obstacle = obstacle or READ_ELSEWHERE
        follows = obstacle == NOT_REACHED and _input_stays_float(module, request) and is_called(weight, graph, weighted)
        if forced and not follows:
            raise PrepareError(f"layer {name!r} cannot be quantized: {obstacle}")
        return replace(row, reason=obstacle if skipped is None or forced else "skipped on request")
    if skipped is not None and not forced:
        return replace(row, reason="skipped on request")
    first = not _reach(name, graph.predecessors, weighted)
    last = not _reach(name, graph.successors, weighted)
    bits, reason = request.bits, ""
    if (first or last) and not forced:
        reason = "first layer" if first else "last layer"
        if request.first_last == "float":
            return replace(row, reason=reason)
        bits, reason = (8,), f"{reason}, 8 bits"
    if read_elsewhere:
        return replace(row, reason=READ_ELSEWHERE)
    granularity = _granularity(name, module, request)
    if _input_stays_float(module, request):
        kind_of_input = "float"
    else:
        kind_of_input = "unsigned" if graph.nonnegative[name] else "signed"
    group_size = request.group_size if granularity == "group" else None
    return replace(
        row,
        status="quantized",
        reason=reason,
        bits=bits,
        granularity=granularity,
        group_size=group_size,
        input=kind_of_input,
    )


def _input_stays_float(module: nn.Module, request: Request) -> bool:
    return isinstance(module, nn.Embedding) or not request.activations


def _granularity(name: str, module: nn.Module, request: Request) -> str:
    for pattern, granularity in request.granularity_of:
        if _matches(pattern, name, module, type(module)):
            return granularity
    return request.granularity


def _norm_entry(
    name: str, module: nn.Module, graph: Graph, entries: Mapping[str, LayerEntry], request: Request
) -> LayerEntry:
    """Return the row of a BatchNorm: it follows the one layer that feeds it, else the first layer that it feeds."""

    def switchable(names: Collection[str]) -> list[str]:
        return [n for n in graph.predecessors if n in names and _is_switchable(entries.get(n))]

    feeding = switchable(graph.predecessors.get(name, ()))
    fed = switchable(graph.successors.get(name, ()))
    candidates = feeding if len(feeding) == 1 else fed
    width_from = candidates[0] if candidates else None
    transitional = request.batch_norm == "transitional" and width_from is not None
    width_to = _next_layer(name, graph, entries) if transitional else None
    return LayerEntry(
        name=name,
        kind=type(module).__name__,
        status="per-width",
        bits=request.bits,
        width_from=width_from,
        width_to=None if width_to == width_from else width_to,
    )


def _is_switchable(entry: LayerEntry | None) -> bool:
    return entry is not None and entry.status == "quantized" and len(entry.bits) > 1


def _next_layer(name: str, graph: Graph, entries: Mapping[str, LayerEntry]) -> str | None:
    """Return the switchable layer that what a node computes reaches next, through anything that has one width only.

    Where ways part, at a residual connection or at branches, it is the layer that is executed first.
    """
    seen, todo = set(), [name]
    while todo:
        for node in graph.successors.get(todo.pop(), ()):
            if node not in seen:
                seen.add(node)
                if not _is_switchable(entries.get(node)):
                    todo.append(node)
    return next((n for n in graph.predecessors if n in seen and _is_switchable(entries.get(n))), None)


def _warn(entries: Mapping[str, LayerEntry], quiet: Collection[str]) -> None:
    expected = ("skipped on request", "first layer", "last layer")
    named = [
        f"  {entry.name}: {entry.reason}"
        for entry in entries.values()
        if entry.status == "float" and entry.reason not in expected and not entry.reason.startswith(SHARES)
        if entry.name not in quiet
    ]
    if named:
        warnings.warn(
            f"{len(named)} layers with weights stay in full precision:\n" + "\n".join(named),
            BitswitchWarning,
            stacklevel=5,
        )


def check_granularity(granularity: str | Mapping[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Split a granularity= argument into a default and (pattern, granularity) pairs."""
    pairs = tuple(granularity.items()) if isinstance(granularity, Mapping) else ()
    default = "tensor" if isinstance(granularity, Mapping) else granularity
    for value in (default, *(value for _, value in pairs)):
        if value not in GRANULARITIES:
            raise PrepareError(f"granularity must be one of {', '.join(GRANULARITIES)}; got {value!r}")
    return default, pairs
