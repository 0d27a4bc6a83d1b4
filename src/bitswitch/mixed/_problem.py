"""The search as plain arrays: choose one option a group, minimise a sum, keep other sums within limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Costs are integers or measured times; sums of times in another order differ by no more than this.
_RELATIVE_TOLERANCE = 1e-12

Choice = tuple[int, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Limit:
    """An upper bound of one cost.

    Attributes:
        name: what errors call it.
        costs: by group, one array over its options.
        bound: largest sum that is allowed.
    """

    name: str
    costs: Sequence[Floats]
    bound: float

    def total(self, choice: Choice) -> float:
        """Return the cost of a choice."""
        return float(sum(costs[option] for costs, option in zip(self.costs, choice, strict=True)))

    def allows(self, choice: Choice) -> bool:
        """Return whether a choice is within the bound; exactly so for integer costs."""
        total = self.total(choice)
        if total.is_integer() and float(self.bound).is_integer():
            return total <= self.bound
        return total <= self.bound + _RELATIVE_TOLERANCE * abs(self.bound)


@dataclass(frozen=True)
class Problem:
    """A multiple-choice knapsack with any number of limits.

    Attributes:
        objective: by group, one array over its options; their sum is minimised.
        limits: upper bounds that hold together.
    """

    objective: Sequence[Floats]
    limits: Sequence[Limit] = ()

    @property
    def num_groups(self) -> int:
        """Number of choices to make."""
        return len(self.objective)

    def value(self, choice: Choice) -> float:
        """Return the objective of a choice."""
        return float(sum(values[option] for values, option in zip(self.objective, choice, strict=True)))

    def allows(self, choice: Choice) -> bool:
        """Return whether a choice is within every limit."""
        return all(limit.allows(choice) for limit in self.limits)

    def without_dominated(self) -> tuple[Problem, list[NDArray[np.intp]]]:
        """Drop options that another one of their group beats in the objective and in every cost, or equals.

        The optimum stays one, and of several equal optima the cheapest ones stay.

        Returns:
            The smaller problem, and for each group the indices of the options that are left.
        """
        kept = [self._undominated(group) for group in range(self.num_groups)]
        limits = [
            Limit(limit.name, [c[k] for c, k in zip(limit.costs, kept, strict=True)], limit.bound)
            for limit in self.limits
        ]
        return Problem([c[k] for c, k in zip(self.objective, kept, strict=True)], limits), kept

    def _undominated(self, group: int) -> NDArray[np.intp]:
        rows = np.stack([self.objective[group], *(limit.costs[group] for limit in self.limits)], axis=1)
        no_worse = (rows[:, None] <= rows[None]).all(2)
        better = no_worse & ~no_worse.T
        # Of options that are equal in everything, the first stays.
        twin = np.triu(no_worse & no_worse.T, 1)
        return np.flatnonzero(~(better | twin).any(0))
