"""Matrices that are parameters of no layer of a known kind: float, with rows of their own in the layer table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from bitswitch.layers.norm import is_batch_norm
from bitswitch.layers.registry import float_weights, has_weight
from bitswitch.layers.table import PARAMETER, LayerEntry

# Those of a module that hold less than this share of what the median quantized layer does make no warning.
_SMALL = 0.5


def _is_matrix(parameter: nn.Parameter | None) -> bool:
    """Whether a parameter has two dimensions that count: class tokens, layer scales and biases have one."""
    if parameter is None or isinstance(parameter, nn.UninitializedParameter):
        return False
    return parameter.is_floating_point() and sum(size > 1 for size in parameter.shape) > 1


def bare_matrices(model: nn.Module) -> list[tuple[str, nn.Module, nn.Parameter]]:
    """Return (name, module that holds it, parameter) of every matrix that is no weight of a layer, each once."""
    modules = list(model.named_modules())
    seen = {id(weight) for _, module in modules if has_weight(module) for weight in float_weights(module)}
    found: list[tuple[str, nn.Module, nn.Parameter]] = []
    for prefix, module in modules:
        if is_batch_norm(module) or isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None and _is_matrix(parameter) and id(parameter) not in seen:
                seen.add(id(parameter))
                found.append((f"{prefix}.{key}" if prefix else key, module, parameter))
    return found


def bare_rows(model: nn.Module, is_skipped: Callable[[str, nn.Module], bool]) -> dict[str, LayerEntry]:
    """Return the rows of `bare_matrices` by name.

    Args:
        model: the float model.
        is_skipped: whether the user asked to leave the parameter of this name, which this module holds, as it is.
    """
    rows: dict[str, LayerEntry] = {}
    for name, module, parameter in bare_matrices(model):
        kind = type(module).__name__
        reason = f"{kind} has it besides its weight" if has_weight(module) else f"{kind} is no layer of a known kind"
        if is_skipped(name, module):
            reason = "skipped on request"
        rows[name] = LayerEntry(name, PARAMETER, "float", reason, tuple(parameter.shape))
    return rows


def small(entries: Iterable[LayerEntry]) -> set[str]:
    """Return the names of bare matrices that are too small to warn of, such as position embeddings.

    They count together with the others of their module, so that many small ones are not overlooked.
    """
    entries = list(entries)
    typical = statistics.median(entry.own_weights for entry in entries if entry.status == "quantized")
    totals: Counter[str] = Counter()
    bare = [entry for entry in entries if entry.kind == PARAMETER]
    for entry in bare:
        totals[_holder(entry.name)] += entry.own_weights
    return {entry.name for entry in bare if totals[_holder(entry.name)] < _SMALL * typical}


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def in_order(model: nn.Module, entries: Mapping[str, LayerEntry]) -> list[LayerEntry]:
    """Return rows in the order of the model, those of parameters after that of the module that holds them."""
    names: list[str] = []
    for prefix, module in model.named_modules():
        names += [prefix, *(f"{prefix}.{key}" if prefix else key for key in module._parameters)]
    return [entries[name] for name in names if name in entries]
