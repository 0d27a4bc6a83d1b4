"""Layers that share one weight have one fate: one stores it, or all stay float."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import nn

from bitswitch._trace import Graph
from bitswitch.errors import PrepareError
from bitswitch.layers.registry import float_weights, layout
from bitswitch.layers.table import LayerEntry

# What the reason of a layer begins with that stays float because of the weight that it shares.
SHARES = "shares its weight"
NOT_REACHED = "its forward is not called on the example inputs in evaluation mode"


def is_called(weight: nn.Parameter | None, graph: Graph, weighted: Mapping[str, nn.Module]) -> bool:
    """Whether a traced run called a layer that holds a weight."""
    return any(
        module._parameters.get("weight") is weight for name, module in weighted.items() if name in graph.predecessors
    )


def settle_shared_weights(
    entries: dict[str, LayerEntry],
    weighted: Mapping[str, nn.Module],
    forced: Collection[str],
    floating: Collection[str],
) -> None:
    """Give layers that share one weight parameter one fate: the first stores it, or all stay float.

    Args:
        entries: the rows of the layers, decided one by one; changed.
        weighted: the layers by name, in order.
        forced: those that the user wants to be quantized.
        floating: those whose input stays float if they are.

    Raises:
        PrepareError: a forced layer cannot be quantized.
    """
    groups: dict[int, list[str]] = {}
    for name, module in weighted.items():
        weight = module._parameters.get("weight")
        if weight is not None:
            groups.setdefault(id(weight), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            _let_follow(entries, names, floating)
            _check_forced(entries, names, weighted, forced)
            _settle(entries, names, weighted)


def _let_follow(entries: dict[str, LayerEntry], names: list[str], floating: Collection[str]) -> None:
    """Let layers that are never called, and only hold the weight of others that are, become what those are.

    There is no result of theirs that could differ. An input that needs scales would never get any, so layers whose
    input would be quantized do not follow.
    """
    idle = [name for name in names if entries[name].reason == NOT_REACHED]
    called = [name for name in names if name not in idle]
    if not called:
        return
    floats = [name for name in called if entries[name].status == "float"]
    floats += [name for name in idle if name not in floating]
    for name in idle:
        if not floats:
            entries[name] = replace(entries[called[0]], name=name, kind=entries[name].kind, input="float")
        elif name != floats[0]:
            entries[name] = replace(entries[name], reason=f"{SHARES} with {floats[0]}, which stays float")


def _check_forced(
    entries: Mapping[str, LayerEntry], names: list[str], weighted: Mapping[str, nn.Module], forced: Collection[str]
) -> None:
    wanted = next((name for name in names if name in forced), None)
    if wanted is None:
        return
    # Those that stay float because of the others have no reason of their own.
    floats = [n for n in names if entries[n].status == "float" and not entries[n].reason.startswith(SHARES)]
    if floats:
        raise PrepareError(f"layer {wanted!r} cannot be quantized: {_stays_float(floats, entries)}")
    if len(_layouts(names, weighted)) > 1:
        raise PrepareError(f"layer {wanted!r} cannot be quantized: {_other_layout(wanted, names)}")


def _stays_float(names: list[str], entries: Mapping[str, LayerEntry]) -> str:
    """Say which layers keep a shared weight float, why, and what to do."""
    idle = next((name for name in names if entries[name].reason == NOT_REACHED), None)
    name = idle or names[0]
    if idle is not None:
        advice = f"take {idle!r} out of the network before prepare"
    else:
        advice = "force both" if len(names) == 1 else f"force all of {', '.join(map(repr, names))}"
    return f"it shares its weight with {name!r}, which stays float ({entries[name].reason}); {advice}"


def _settle(entries: dict[str, LayerEntry], names: list[str], weighted: Mapping[str, nn.Module]) -> None:
    floats = [name for name in names if entries[name].status == "float"]
    differ = not floats and len(_layouts(names, weighted)) > 1
    owner = entries[names[0]]
    for name in names:
        entry = entries[name]
        if (floats or differ) and entry.status == "quantized":
            reason = f"{SHARES} with {floats[0]}, which stays float" if floats else _other_layout(name, names)
            entries[name] = LayerEntry(name, entry.kind, "float", reason, entry.shape)
        elif not floats and name != owner.name:
            entries[name] = replace(
                entry,
                alias_of=owner.name,
                bits=owner.bits,
                granularity=owner.granularity,
                group_size=owner.group_size,
            )


def _layouts(names: list[str], weighted: Mapping[str, nn.Module]) -> set[object]:
    return {layout(weighted[name]) for name in names}


def _other_layout(name: str, names: list[str]) -> str:
    other = next(n for n in names if n != name)
    return f"its weight is shared with {other}, and one of them has its output channels elsewhere"


def count_float_weights(entries: dict[str, LayerEntry], weighted: Mapping[str, nn.Module]) -> None:
    """Say of float layers what their shapes do not: which weights they have that no earlier layer has."""
    owners: dict[int, LayerEntry] = {}
    for name, module in weighted.items():
        entry, weights = entries[name], float_weights(module)
        if entry.status == "float":
            new = {id(weight): weight.numel() for weight in weights if id(weight) not in owners}
            owner = owners.get(id(module._parameters.get("weight")))
            if owner is not None and (owner.status, owner.shape) == ("float", entry.shape):
                entries[name] = replace(entry, alias_of=owner.name)
            elif sum(new.values()) != entry.own_weights:
                entries[name] = replace(entry, num_weights=sum(new.values()))
        for weight in weights:
            owners.setdefault(id(weight), entry)
