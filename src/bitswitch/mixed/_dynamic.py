"""The search under one limit with small integer costs: a dynamic programme whose one pass answers every budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitswitch.mixed._problem import Choice, Floats

# Memory and time grow with groups × largest total: beyond this the integer programme is the better way.
MAX_CELLS = 50_000_000


class DynamicProgramme:
    """All optima of min Σ objective subject to Σ cost ≤ budget, for every budget at once.

    f_g(s) = min over the options o of group g of f_{g−1}(s − cost_o) + objective_o is the least objective of the first
    g groups at a total cost of exactly s.

    Args:
        objective: by group, one array over its options.
        costs: by group, non-negative integers of the same shapes.
    """

    def __init__(self, objective: Sequence[Floats], costs: Sequence[Floats]) -> None:
        self._costs = [np.asarray(values).astype(np.int64) for values in costs]
        self._least = sum(int(values.min()) for values in self._costs)
        extra = [values - values.min() for values in self._costs]
        total = sum(int(values.max()) for values in extra)
        self._extra = extra
        self._options: list[NDArray[np.int8]] = []
        value = np.full(total + 1, np.inf)
        value[0] = 0.0
        for group_objective, group_extra in zip(objective, extra, strict=True):
            value = self._add_group(value, group_objective, group_extra)
        # The least total at which the best value for every budget is reached.
        best = np.minimum.accumulate(value)
        first = np.concatenate([[True], best[1:] < best[:-1]])
        self._total_for = np.maximum.accumulate(np.where(first, np.arange(total + 1), 0))

    def _add_group(self, value: Floats, objective: Floats, extra: NDArray[np.int64]) -> Floats:
        new = np.full_like(value, np.inf)
        chosen = np.zeros(len(value), np.int8)
        for option, (gain, cost) in enumerate(zip(objective, extra, strict=True)):
            candidate = value[: len(value) - cost] + gain
            better = candidate < new[cost:]
            new[cost:][better] = candidate[better]
            chosen[cost:][better] = option
        self._options.append(chosen)
        return new

    def solve(self, budget: float) -> Choice | None:
        """Return an optimal choice for a budget (of several, one of the least cost), or None if there is none."""
        room = int(np.floor(budget)) - self._least
        if room < 0:
            return None
        total = int(self._total_for[min(room, len(self._total_for) - 1)])
        choice: list[int] = []
        for options, extra in zip(reversed(self._options), reversed(self._extra), strict=True):
            option = int(options[total])
            choice.append(option)
            total -= int(extra[option])
        return tuple(reversed(choice))
