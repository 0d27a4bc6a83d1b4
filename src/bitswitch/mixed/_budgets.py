"""Budgets: how each is counted, and what a user's number means for the sum over the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitswitch.mixed.cost import CostTable, LayerCost

ALWAYS = ("average_bits", "weighted_bits", "weight_bytes")
WHAT_IS_MISSING = {"bitops": "example_inputs, to count multiplications", "latency": "a latency_table"}
NAMES = (*ALWAYS, *WHAT_IS_MISSING)


@dataclass(frozen=True)
class CostKind:
    """How a budget is counted: the cost of a layer at a width, and the bound for a budget of the user's.

    Attributes:
        label: what errors call it.
        unit: after a number of it.
        of_layer: the cost of a layer at a width.
        bound: the bound of the sum for a budget.
        budget: the budget for a sum.
        integer: whether costs are integers.
        counts: whether budgets are integers too, in the user's own unit.
    """

    label: str
    unit: str
    of_layer: Callable[[LayerCost, int], float]
    bound: Callable[[float], float]
    budget: Callable[[float], float]
    integer: bool = True
    counts: bool = False


def cost_kinds(costs: CostTable) -> dict[str, CostKind]:
    """Return the budgets that can be given for a model, by name."""
    counted = {layer.name for layer in costs.counted}
    num_layers = len(counted)
    num_weights = max(1, sum(layer.num_weights for layer in costs.counted))

    def share(layer: LayerCost, factor: int) -> int:
        return factor if layer.name in counted else 0

    fixed = costs.float_bytes
    kinds = {
        "average_bits": CostKind(
            "average width", " bits", lambda v, b: b * share(v, 1), lambda x: x * num_layers, lambda x: x / num_layers
        ),
        "weighted_bits": CostKind(
            "average width by weights",
            " bits",
            lambda v, b: b * share(v, v.num_weights),
            lambda x: x * num_weights,
            lambda x: x / num_weights,
        ),
        "weight_bytes": CostKind(
            "size", " bytes", lambda v, b: v.weight_bytes(b), lambda x: x - fixed, lambda x: x + fixed, counts=True
        ),
    }
    if all(layer.num_macs is not None for layer in costs.layers.values()):
        kinds["bitops"] = CostKind("number of BitOPs", "", lambda v, b: v.bitops(b) or 0, float, float, counts=True)
    if all(layer.seconds is not None for layer in costs.layers.values()):
        kinds["latency"] = CostKind("latency", " s", lambda v, b: (v.seconds or {})[b], float, float, integer=False)
    return kinds
