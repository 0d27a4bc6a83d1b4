"""Exact solutions of the search problem by integer linear programming: scipy's HiGHS, asked for a gap of zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from bitswitch.errors import BitswitchError
from bitswitch.mixed._problem import Choice, Floats, Problem

# HiGHS also stops at an absolute gap of 1e-6, which scipy does not let one change: the objective is scaled so far up
# that this is nothing, and not so far that tolerances of the linear programmes become noise.
_OBJECTIVE_RANGE = 1e6
_INFEASIBLE = 2


class SolverError(BitswitchError, RuntimeError):
    """HiGHS stopped without a proof."""


def solve(problem: Problem, forbidden: Sequence[Choice] = ()) -> Choice | None:
    """Return an optimal choice, or None if there is none within the limits.

    Args:
        problem: what to choose.
        forbidden: choices that are not to be found again; each becomes a no-good cut Σ_g x_{g, c_g} ≤ G − 1.

    Raises:
        SolverError: the solver gave up.
    """
    if problem.num_groups == 0:
        return None if forbidden or not problem.allows(()) else ()
    if forbidden:
        return _solve(problem, list(forbidden))
    smaller, kept = problem.without_dominated()
    found = _solve(smaller, [])
    return None if found is None else tuple(int(k[option]) for k, option in zip(kept, found, strict=True))


def best(problem: Problem, count: int) -> Iterator[Choice]:
    """Yield the `count` best choices, best first; fewer if there are no more."""
    found: list[Choice] = []
    while len(found) < count:
        choice = solve(problem, found)
        if choice is None:
            return
        found.append(choice)
        yield choice


def _solve(problem: Problem, cuts: list[Choice]) -> Choice | None:
    sizes = [len(values) for values in problem.objective]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    objective = _scaled_objective(problem.objective)
    fixed = [_one_each(sizes, int(starts[-1])), *(_limit_row(limit.costs, limit.bound) for limit in problem.limits)]
    while True:
        constraints = [*fixed, *(_cut(choice, starts) for choice in cuts)]
        result = milp(
            objective,
            constraints=constraints,
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if result.status == _INFEASIBLE:
            return None
        if not result.success or result.x is None:
            raise SolverError(f"the integer programme could not be solved: {result.message}")
        pairs = zip(starts, sizes, strict=False)
        choice = tuple(int(np.argmax(result.x[start : start + size])) for start, size in pairs)
        if problem.allows(choice):
            return choice
        # The solver's tolerance let pass what exceeds a limit by a little: not this one, then.
        cuts = [*cuts, choice]


def _scaled_objective(groups: Sequence[Floats]) -> Floats:
    """Return the objective with zero for each group's best option, scaled to a range that HiGHS resolves."""
    shifted = np.concatenate([values - values.min() for values in groups])
    largest = shifted.max()
    return shifted * (_OBJECTIVE_RANGE / largest) if largest > 0 else shifted


def _one_each(sizes: Sequence[int], num_variables: int) -> LinearConstraint:
    rows = np.repeat(np.arange(len(sizes)), sizes)
    shape = (len(sizes), num_variables)
    matrix = sparse.csr_array((np.ones(num_variables), (rows, np.arange(num_variables))), shape=shape)
    return LinearConstraint(matrix, 1, 1)  # pyright: ignore[reportArgumentType]


def _limit_row(costs: Sequence[Floats], bound: float) -> LinearConstraint:
    """Return Σ cost ≤ bound, from each group's cheapest option on, in units of the largest difference."""
    least = sum(float(values.min()) for values in costs)
    row = np.concatenate([values - values.min() for values in costs])
    unit = row.max() or 1.0
    matrix = sparse.csr_array(row[None] / unit)
    return LinearConstraint(matrix, -np.inf, (bound - least) / unit)  # pyright: ignore[reportArgumentType]


def _cut(choice: Choice, starts: np.ndarray) -> LinearConstraint:
    row = np.zeros((1, int(starts[-1])))
    row[0, starts[:-1] + np.asarray(choice)] = 1
    return LinearConstraint(sparse.csr_array(row), -np.inf, len(choice) - 1)  # pyright: ignore[reportArgumentType]
