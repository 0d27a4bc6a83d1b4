"""The solvers against enumeration of everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitswitch.mixed import _milp
from bitswitch.mixed._dynamic import DynamicProgramme
from bitswitch.mixed._problem import Limit, Problem

NUM_INSTANCES = 320


def totals(groups: list[np.ndarray]) -> np.ndarray:
    """Return the sum of every combination of options."""
    result = np.zeros(1)
    for values in groups:
        result = (result[:, None] + values[None]).reshape(-1)
    return result


def instance(seed: int) -> Problem:
    """Return at most 8 layers × 3–5 widths with one to three limits, tight ones and loose ones."""
    rng = np.random.default_rng(seed)
    num_widths = int(rng.integers(3, 6))
    num_groups = int(rng.integers(1, 9 if num_widths == 3 else 7))
    widths = np.sort(rng.choice(np.arange(2, 9), num_widths, replace=False))[::-1].astype(float)
    scale = 10.0 ** rng.uniform(-9, 3)
    objective = [
        scale * np.exp(rng.normal(0, 3)) * 4.0**-widths * rng.uniform(0.5, 2, num_widths) for _ in range(num_groups)
    ]
    if seed % 5 == 0:
        objective = [-float(rng.integers(0, 4)) * widths for _ in range(num_groups)]
    sizes = 10.0 ** rng.uniform(1, 7, num_groups)
    costs = {
        "average": [widths.copy() for _ in range(num_groups)],
        "bytes": [np.floor(widths * size) for size in sizes],
        "time": [rng.uniform(0, 1e-3, num_widths) for _ in range(num_groups)],
    }
    names = list(rng.permutation(list(costs)))[: int(rng.integers(1, 4))]
    limits = []
    for name in names:
        low, high = sum(c.min() for c in costs[name]), sum(c.max() for c in costs[name])
        bound = low + rng.uniform(-0.02, 1.0) * (high - low)
        limits.append(Limit(name, costs[name], bound if name == "time" else float(np.floor(bound))))
    return Problem(objective, limits)


@pytest.mark.parametrize("block", range(8))
def test_optimum_equals_brute_force(block: int) -> None:
    per_block = NUM_INSTANCES // 8
    for seed in range(block * per_block, (block + 1) * per_block):
        problem = instance(seed)
        feasible = np.logical_and.reduce([totals(list(m.costs)) <= m.bound * (1 + 1e-12) for m in problem.limits])
        found = _milp.solve(problem)
        if not feasible.any():
            assert found is None, seed
            continue
        values = totals(list(problem.objective))[feasible]
        assert found is not None, seed
        assert problem.allows(found), seed
        spread = max(float(np.ptp(totals(list(problem.objective)))), 1e-300)
        assert problem.value(found) - values.min() <= 1e-12 * spread, seed


@pytest.mark.parametrize("seed", range(40))
def test_dynamic_programme_answers_every_budget(seed: int) -> None:
    problem = instance(seed)
    rng = np.random.default_rng(seed)
    costs = [rng.integers(2, 9, len(values)).astype(float) for values in problem.objective]
    programme = DynamicProgramme(problem.objective, costs)
    all_costs, values = totals(costs), totals(list(problem.objective))
    for budget in range(int(all_costs.min()) - 1, int(all_costs.max()) + 2):
        found = programme.solve(budget)
        if budget < all_costs.min():
            assert found is None
            continue
        assert found is not None
        limit = Limit("bits", costs, budget)
        assert limit.allows(found)
        best = values[all_costs <= budget].min()
        assert problem.value(found) == pytest.approx(best, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("seed", [1, 7, 12])
def test_next_best_solutions_come_in_order_and_leave_none_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    objective = [rng.uniform(0, 1, 3) for _ in range(4)]
    costs = [np.array([4.0, 3.0, 2.0]) for _ in range(4)]
    problem = Problem(objective, [Limit("bits", costs, 12.0)])
    found = list(_milp.best(problem, 12))
    allowed = [c for c in itertools.product(range(3), repeat=4) if problem.allows(c)]
    expected = sorted(problem.value(c) for c in allowed)[:12]
    assert len(set(found)) == 12
    assert [problem.value(c) for c in found] == pytest.approx(expected, rel=1e-12)
    assert len(list(_milp.best(problem, 1000 if len(allowed) < 90 else 90))) == len(allowed)


def test_dominated_options_go_and_ties_keep_the_cheaper() -> None:
    problem = Problem([np.array([1.0, 0.5, 0.5, 0.0])], [Limit("a", [np.array([2.0, 3.0, 1.0, 9.0])], 8.0)])
    _, kept = problem.without_dominated()
    assert kept[0].tolist() == [2, 3]
    assert _milp.solve(problem) == (2,)
