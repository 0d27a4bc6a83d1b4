"""What a search chooses from: the widths of every layer, their costs and their objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

import numpy as np

from bitswitch.errors import BitswitchError, ConfigError, PrecisionError, UnknownLayerError
from bitswitch.mixed import _milp
from bitswitch.mixed._budgets import NAMES, WHAT_IS_MISSING, CostKind, cost_kinds
from bitswitch.mixed._dynamic import MAX_CELLS, DynamicProgramme
from bitswitch.mixed._problem import Choice, Floats, Limit, Problem
from bitswitch.mixed.cost import Cost, CostTable
from bitswitch.precision import Precision


class InfeasibleError(BitswitchError, ValueError):
    """No precision is within the budgets; the message says what the smallest feasible one is."""


@dataclass(frozen=True)
class SubNet:
    """One precision of a SuperNet.

    Attributes:
        precision: the width of every quantized layer.
        cost: what it costs.
        sensitivity: the objective: what was minimised.
    """

    precision: Precision
    cost: Cost
    sensitivity: float


class SearchSpace:
    """The widths that are allowed, what each costs, and how much it hurts; see `search` for the arguments.

    Making one and calling `solve` many times spares computing the objective anew.

    Args:
        costs: from `measure_costs`.
        objective: {layer that stores a weight: {width: value}}, to be minimised.
        layer_bits: widths that some layers are limited to, by name or pattern.

    Raises:
        UnknownLayerError: a pattern matches no layer.
        PrecisionError: a width was not prepared, or a layer is left without one.
        ConfigError: the objective lacks a value or has one that is not finite.
    """

    def __init__(
        self,
        costs: CostTable,
        objective: Mapping[str, Mapping[int, float]],
        layer_bits: Mapping[str, Collection[int] | int] | None = None,
    ) -> None:
        self.costs = costs
        self._groups = costs.groups
        allowed = _allowed(costs, layer_bits or {})
        self._widths: list[list[int]] = []
        for group in self._groups:
            common = set.intersection(*(set(allowed[layer.name]) for layer in group))
            if not common:
                names = ", ".join(repr(layer.name) for layer in group)
                raise PrecisionError(
                    f"layer_bits leaves no width that the layers {names}, which share a weight, can have"
                )
            self._widths.append(sorted(common, reverse=True))
        self._objective = self._values_of(objective)
        self._kinds = cost_kinds(costs)
        self._programme: DynamicProgramme | None = None

    def minimising(self, objective: Mapping[str, Mapping[int, float]]) -> SearchSpace:
        """Return the same widths and costs with another objective.

        Args:
            objective: {layer that stores a weight: {width: value}}.

        Raises:
            ConfigError: it lacks a value or has one that is not finite.
        """
        other = copy.copy(self)
        other._objective = self._values_of(objective)
        other._programme = None
        return other

    def _values_of(self, objective: Mapping[str, Mapping[int, float]]) -> list[Floats]:
        return [
            np.array([_finite(objective, group[0].stored_by, bits) for bits in widths], dtype=np.float64)
            for group, widths in zip(self._groups, self._widths, strict=True)
        ]

    def solve(self, budgets: Mapping[str, float], count: int = 1) -> list[SubNet]:
        """Return the best precisions within budgets that hold together, best first.

        Args:
            budgets: by name: average_bits, weighted_bits, weight_bytes, bitops, latency.
            count: how many; fewer are returned if there are no more.

        Raises:
            InfeasibleError: there is none; the message names the smallest feasible budget.
            ConfigError: a budget is no positive number, its cost is not known, or `count` is no positive integer.
        """
        if type(count) is not int or count < 1:
            raise ConfigError(f"the number of precisions to find must be a positive integer; got {count!r}")
        limits = [self._limit(name, budget) for name, budget in budgets.items()]
        problem = Problem(self._objective, limits)
        if count == 1 and len(limits) == 1 and self._dynamic(next(iter(budgets))):
            choice = self._average_programme(limits[0]).solve(limits[0].bound)
            choices = [] if choice is None else [choice]
        else:
            choices = list(_milp.best(problem, count))
        if not choices:
            raise InfeasibleError(self._explain(budgets, limits))
        return [self._subnet(problem, choice) for choice in choices]

    def evaluate(self, precision: Precision) -> SubNet:
        """Return a given precision with its cost and objective.

        Raises:
            PrecisionError, UnknownLayerError: it does not fit the model.
        """
        resolved = precision.resolve(self.costs.available)
        value = 0.0
        for group, widths, values in zip(self._groups, self._widths, self._objective, strict=True):
            bits = resolved[group[0].name]
            if any(resolved[layer.name] != bits for layer in group):
                raise PrecisionError(f"layers that share the weight of {group[0].name!r} must have one width")
            if bits not in widths:
                raise PrecisionError(
                    f"layer {group[0].name!r} is limited to {', '.join(map(str, widths))} bits; got {bits}"
                )
            value += float(values[widths.index(bits)])
        return SubNet(Precision.of(resolved), self.costs.of(resolved), value)

    @property
    def choices(self) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        """(names of the layers that share a weight, widths that they may have), for every choice there is to make."""
        pairs = zip(self._groups, self._widths, strict=True)
        return [(tuple(layer.name for layer in group), tuple(widths)) for group, widths in pairs]

    def within(self, cost: Cost, budgets: Mapping[str, float]) -> bool:
        """Return whether a cost is within budgets.

        Raises:
            ConfigError: there is no such budget, or its cost was not measured.
        """
        for name, budget in budgets.items():
            value = getattr(cost, name) if name in self._kinds else None
            if value is None:
                self._kind(name)
                raise ConfigError(f"the cost {name!r} was not measured")
            if value > (budget if self._kinds[name].counts else budget * (1 + 1e-9)):
                return False
        return True

    def _subnet(self, problem: Problem, choice: Choice) -> SubNet:
        resolved = {
            layer.name: widths[option]
            for group, widths, option in zip(self._groups, self._widths, choice, strict=True)
            for layer in group
        }
        ordered = {name: resolved[name] for name in self.costs.layers}
        return SubNet(Precision.of(ordered), self.costs.of(ordered), problem.value(choice))

    def _kind(self, name: str) -> CostKind:
        if name in self._kinds:
            return self._kinds[name]
        if name in WHAT_IS_MISSING:
            raise ConfigError(f"a budget of {name} needs {WHAT_IS_MISSING[name]}")
        raise ConfigError(f"there is no budget {name!r}; there are {', '.join(NAMES)}")

    def _limit(self, name: str, budget: float) -> Limit:
        kind = self._kind(name)
        if not isinstance(budget, Real) or isinstance(budget, bool) or not math.isfinite(budget) or budget <= 0:
            raise ConfigError(f"the budget {name} must be a positive number; got {budget!r}")
        bound = kind.bound(float(budget))
        if kind.counts:
            bound = math.floor(bound)
        elif kind.integer:
            # A budget such as 2.6 × 5 layers must not miss its 13 bits by the last digit of a float.
            bound = math.floor(bound * (1 + 1e-12) + 1e-9)
        return Limit(name, self._costs_of(kind), bound)

    def _costs_of(self, kind: CostKind) -> list[Floats]:
        return [
            np.array([sum(kind.of_layer(layer, bits) for layer in group) for bits in widths], dtype=np.float64)
            for group, widths in zip(self._groups, self._widths, strict=True)
        ]

    def _dynamic(self, name: str) -> bool:
        cells = len(self._groups) * sum(
            max(widths) * len(g) for g, widths in zip(self._groups, self._widths, strict=True)
        )
        return name == "average_bits" and cells <= MAX_CELLS

    def _average_programme(self, limit: Limit) -> DynamicProgramme:
        if self._programme is None:
            self._programme = DynamicProgramme(self._objective, limit.costs)
        return self._programme

    def _explain(self, budgets: Mapping[str, float], limits: list[Limit]) -> str:
        """Say, for each budget, what the smallest feasible one is while the others hold."""
        alone = [float(sum(values.min() for values in limit.costs)) for limit in limits]
        too_small = [i for i, limit in enumerate(limits) if alone[i] > limit.bound]
        if too_small:
            parts = [self._smallest(limits[i], budgets, alone[i]) for i in too_small]
            return f"no precision is within the budget: {'; '.join(parts)}"
        parts = []
        for i, limit in enumerate(limits):
            others = [other for j, other in enumerate(limits) if j != i]
            choice = _milp.solve(Problem(limit.costs, others))
            if choice is not None:
                parts.append(self._smallest(limit, budgets, limit.total(choice)))
        together = " and ".join(f"{name} ≤ {_shown(budget)}" for name, budget in budgets.items())
        reasons = "; or ".join(parts) if parts else "with any one of them left out the rest cannot be met either"
        return f"no precision is within {together} together; while the others hold, {reasons}"

    def _smallest(self, limit: Limit, budgets: Mapping[str, float], total: float) -> str:
        kind = self._kinds[limit.name]
        smallest = _at_least(kind.budget(total))
        return f"the smallest feasible {kind.label} is {smallest}{kind.unit}, not {_shown(budgets[limit.name])}"


def _finite(objective: Mapping[str, Mapping[int, float]], name: str, bits: int) -> float:
    row: Any = objective.get(name)
    value = row.get(bits) if isinstance(row, Mapping) else None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"the objective has no finite value for layer {name!r} at {bits} bits")
    return float(value)


def _shown(value: float) -> str:
    """Return a number for people: integers in full."""
    return f"{int(value)}" if value == int(value) else f"{value:g}"


def _at_least(value: float) -> str:
    """Return a number for people as `_shown`, rounded up, so that it is feasible if `value` is."""
    text = _shown(value)
    if float(text) >= value:
        return text
    exact = Decimal(value)
    return f"{float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 5), ROUND_CEILING)):g}"


def _allowed(costs: CostTable, layer_bits: Mapping[str, Collection[int] | int]) -> dict[str, tuple[int, ...]]:
    allowed = costs.available
    for pattern, bits in layer_bits.items():
        matching = [name for name in allowed if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not matching:
            raise UnknownLayerError(f"layer_bits: {pattern!r} matches no quantized layer")
        wanted = tuple(bits) if isinstance(bits, Collection) else (bits,)
        for name in matching:
            odd = [b for b in wanted if b not in costs.available[name]]
            if odd and len(costs.available[name]) > 1:
                widths = ", ".join(map(str, costs.available[name]))
                raise PrecisionError(
                    f"layer_bits: layer {name!r} was not prepared for {odd[0]!r} bits; it has {widths}"
                )
            left = tuple(b for b in allowed[name] if b in wanted)
            if not left:
                raise PrecisionError(f"layer_bits leaves layer {name!r} no width")
            allowed[name] = left
    return allowed
