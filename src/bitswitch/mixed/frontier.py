"""The frontier: what the search, its refinement and chance find within several budgets, and what is worth keeping."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bitswitch.errors import ConfigError
from bitswitch.mixed.cost import Cost
from bitswitch.mixed.fitted import fitted
from bitswitch.mixed.measurements import Measured, Measurements
from bitswitch.mixed.refine import random_subnets, refine
from bitswitch.mixed.space import SearchSpace, SubNet
from bitswitch.precision import Precision

Budgets = Mapping[str, float]


@dataclass(frozen=True)
class WithinBudget:
    """What was found within one budget.

    Attributes:
        budgets: that hold together, by name.
        optimum: of the integer programme.
        best: after refinement by measurement; on the data of the measurements never worse than the optimum, a uniform
            precision, or what was found for an earlier budget, as far as they are within this one.
        random: SubNets drawn at random that use the budget up.
        fitted: the programme's solutions under the objective that was fitted to all measurements.
    """

    budgets: Budgets
    optimum: Measured
    best: Measured
    random: tuple[Measured, ...]
    fitted: tuple[Measured, ...] = ()

    @property
    def best_random(self) -> Measured | None:
        """The best of the random SubNets, or None if there are none."""
        return max(self.random, key=lambda row: row.score, default=None)


@dataclass(frozen=True)
class Exploration:
    """All that `explore` measured.

    Attributes:
        uniform: the uniform precisions, highest first.
        within: what was found within each budget.
        measured: every SubNet that was measured, these and the neighbours that refinement tried.
    """

    uniform: tuple[Measured, ...]
    within: tuple[WithinBudget, ...]
    measured: tuple[Measured, ...]

    @property
    def random(self) -> list[Measured]:
        """The random SubNets of all budgets, each once."""
        return list({row.subnet.precision: row for part in self.within for row in part.random}.values())

    @property
    def costs(self) -> list[str]:
        """The costs that are known, by name, in the order of `Cost`."""
        return [item.name for item in fields(Cost) if getattr(self.measured[0].subnet.cost, item.name) is not None]

    def frontier(self, cost: str = "average_bits") -> list[Measured]:
        """Return the SubNets that no other one beats at a cost, see `pareto`."""
        return pareto(self.measured, cost)

    @property
    def chosen(self) -> list[Measured]:
        """The SubNets whose accuracy is to be reported, each once: uniform, on a frontier, or best of a budget."""
        rows = [*self.uniform, *(row for cost in self.costs for row in self.frontier(cost))]
        for part in self.within:
            rows += [part.optimum, part.best, *([] if part.best_random is None else [part.best_random])]
        return list({row.subnet.precision: row for row in rows}.values())

    def origin(self, precision: Precision) -> str:
        """Return how a SubNet was found: "uniform", "programme", "fitted", "refined", "random" or "neighbour"."""
        found = {row.subnet.precision: "random" for row in self.random}
        found |= {part.best.subnet.precision: "refined" for part in self.within}
        found |= {row.subnet.precision: "fitted" for part in self.within for row in part.fitted}
        found |= {part.optimum.subnet.precision: "programme" for part in self.within}
        found |= {row.subnet.precision: "uniform" for row in self.uniform}
        return found.get(precision, "neighbour")


def explore(
    space: SearchSpace,
    measurements: Measurements,
    budgets: Sequence[Budgets],
    *,
    num_random: int = 10,
    num_seeds: int = 4,
    rounds: int = 6,
    neighbours: int = 12,
    num_fitted: int = 4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> Exploration:
    """Measure the uniform precisions, and within every budget the search, its refinement and random SubNets.

    In the end an objective is fitted to all measurements (`fitted`), and the programme's solutions under it are
    measured too, if there are at least twice as many measurements as layers with a choice; otherwise `progress` is told
    why not.

    Everything follows from the arguments, so a repetition on a file of measurements measures only what is missing.

    Args:
        space: what may be chosen.
        measurements: of SubNets, on data that the final accuracy is not measured on.
        budgets: for `SearchSpace.solve`, one after the other.
        num_random: random SubNets of each budget; 0 for none.
        num_seeds: how many of the programme's best solutions refinement starts from.
        rounds: of refinement at most; 0 leaves the programme's best solution as it is.
        neighbours: measured in a round.
        num_fitted: solutions of the programme under the fitted objective, for each budget; 0 for none.
        seed: of random SubNets and neighbours.
        progress: is told what was found within each budget.

    Raises:
        InfeasibleError: nothing is within a budget.
        ConfigError: there are no budgets.
    """
    if not budgets:
        raise ConfigError("a frontier needs at least one budget")
    # Before anything is measured: a budget that cannot be met is an error at once.
    optima = [space.solve(budget)[0] for budget in budgets]
    uniform = measurements(_uniform(space))
    within: list[WithinBudget] = []
    for index, (budget, found) in enumerate(zip(budgets, optima, strict=True)):
        (optimum,) = measurements([found])
        best = optimum
        if rounds > 0:
            best = refine(
                space,
                measurements,
                budget,
                starts=[row.subnet for row in (*uniform, *(part.best for part in within))],
                num_seeds=num_seeds,
                rounds=rounds,
                neighbours=neighbours,
                seed=seed,
            )
        drawn = measurements(random_subnets(space, budget, num_random, seed=seed)) if num_random else []
        within.append(WithinBudget(budget, optimum, best, tuple(drawn)))
        progress(f"{index + 1} of {len(budgets)}: {_described(within[-1])}; {len(measurements)} SubNets measured")
    if num_fitted:
        try:
            within = _with_fitted(space, measurements, within, num_fitted)
        except ConfigError as error:
            progress(f"no objective was fitted: {error}")
        else:
            bests = ", ".join(f"{part.best.score:.4f}" for part in within)
            progress(f"best with the fitted objective: {bests}; {len(measurements)} SubNets measured")
    return Exploration(tuple(uniform), tuple(within), tuple(measurements.asked))


def _with_fitted(
    space: SearchSpace, measurements: Measurements, within: Sequence[WithinBudget], count: int
) -> list[WithinBudget]:
    """Return what was found, with the programme's solutions under an objective that is fitted to all measurements.

    Raises:
        ConfigError: there are too few measurements to learn from.
    """
    learned = space.minimising(fitted(space, measurements.asked))
    found: list[WithinBudget] = []
    for part in within:
        solutions = [space.evaluate(subnet.precision) for subnet in learned.solve(part.budgets, count)]
        measured = tuple(measurements(solutions))
        earlier = [other.best for other in found if space.within(other.best.subnet.cost, part.budgets)]
        best = max((part.best, *measured, *earlier), key=lambda row: row.score)
        found.append(replace(part, best=best, fitted=measured))
    return found


def _described(part: WithinBudget) -> str:
    names = ", ".join(f"{name} {budget:g}" for name, budget in part.budgets.items())
    return f"{names}: {part.optimum.score:.4f}, refined {part.best.score:.4f}"


def _uniform(space: SearchSpace) -> list[SubNet]:
    """Return the SubNets in which every layer with a choice has one width, for each width that all of them may have."""
    choices = space.choices
    free = [widths for _, widths in choices if len(widths) > 1] or [widths for _, widths in choices]
    common = sorted(set.intersection(*(set(widths) for widths in free)), reverse=True)
    found = []
    for bits in common:
        widths = {name: bits if bits in options else options[0] for names, options in choices for name in names}
        found.append(space.evaluate(Precision.of(widths)))
    return found


def pareto(measured: Iterable[Measured], cost: str = "average_bits") -> list[Measured]:
    """Return the measurements that no other one beats: cheapest first, each better than all cheaper ones.

    Args:
        measured: any number of them.
        cost: an attribute of `Cost`.

    Raises:
        ConfigError: there is no such cost, or it is not known.
    """
    if cost not in {item.name for item in fields(Cost)}:
        raise ConfigError(f"there is no cost {cost!r}; there are {', '.join(item.name for item in fields(Cost))}")
    rows = list(measured)
    if any(getattr(row.subnet.cost, cost) is None for row in rows):
        raise ConfigError(f"the cost {cost!r} was not measured")
    frontier: list[Measured] = []
    for row in sorted(rows, key=lambda m: (getattr(m.subnet.cost, cost), -m.score)):
        if not frontier or row.score > frontier[-1].score:
            frontier.append(row)
    return frontier


def accuracy_error(accuracy: float, count: int) -> float:
    """Return the standard error of a share of right answers among `count` samples.

    >>> accuracy_error(0.5, 100)
    0.05
    """
    return math.sqrt(accuracy * (1 - accuracy) / count)


def to_rows(measured: Iterable[Measured]) -> list[dict[str, Any]]:
    """Return every measurement as a flat row of JSON values: precision, score, objective and costs."""
    return [{"precision": str(m.subnet.precision), "score": m.score, **cost_row(m.subnet)} for m in measured]


def cost_row(subnet: SubNet) -> dict[str, Any]:
    """Return objective and costs of a SubNet as JSON values."""
    return {"objective": subnet.sensitivity, **asdict(subnet.cost)}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return flat rows that have the same fields, such as those of `to_rows`, as lines of CSV under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
