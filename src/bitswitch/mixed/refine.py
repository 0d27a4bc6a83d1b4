"""Local search by measurement from the solutions of the integer programme, and random SubNets to compare it with."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from bitswitch.mixed.measurements import Measured, Measurements
from bitswitch.mixed.space import SearchSpace, SubNet
from bitswitch.precision import Precision


def refine(
    space: SearchSpace,
    measurements: Measurements,
    budgets: Mapping[str, float],
    *,
    starts: Iterable[SubNet] = (),
    num_seeds: int = 4,
    rounds: int = 6,
    neighbours: int = 12,
    seed: int = 0,
) -> Measured:
    """Improve on the integer programme by measurement: local search from its best solutions.

    The programme minimises a proxy; what counts is the score. Starting from the best of its `num_seeds` best SubNets
    and of `starts`, each round measures random neighbours of the best one so far (one layer a step up or down, or one
    up and another one down, as long as the budgets hold) and moves to the best of them; it ends early when a round
    does not help. What it starts from is measured too, so the result is never worse than any of it on the data of the
    measurements. Choose other data for the final accuracy.

    Args:
        space: what may be chosen.
        measurements: of SubNets, on held-out calibration data.
        budgets: as for `SearchSpace.solve`.
        starts: further SubNets to start from, such as uniform ones; those that exceed the budgets are left out.
        num_seeds: how many of the programme's best solutions to start from.
        rounds: at most.
        neighbours: measured in a round.
        seed: of the neighbours drawn.

    Raises:
        InfeasibleError: nothing is within the budgets.
        PrecisionError, UnknownLayerError: one of `starts` is not of the space.
    """
    known = (space.evaluate(subnet.precision) for subnet in starts)
    feasible = [subnet for subnet in known if space.within(subnet.cost, budgets)]
    best = max(measurements([*space.solve(budgets, num_seeds), *feasible]), key=_rank)
    generator = random.Random(seed)
    for _ in range(rounds):
        around = _neighbours(space, best.subnet, budgets, neighbours, generator)
        if not around:
            break
        candidate = max(measurements(around), key=_rank)
        if _rank(candidate) <= _rank(best):
            break
        best = candidate
    return best


def _rank(measured: Measured) -> tuple[float, float]:
    # Of equal scores the one that the proxy prefers.
    return measured.score, -measured.subnet.sensitivity


def _neighbours(
    space: SearchSpace, subnet: SubNet, budgets: Mapping[str, float], count: int, generator: random.Random
) -> list[SubNet]:
    """Return random SubNets one or two steps away that are within the budgets."""
    widths = dict(subnet.precision.layers)
    free = [(names, options) for names, options in space.choices if len(options) > 1]
    found: dict[Precision, SubNet] = {}
    for _ in range(20 * count if free else 0):
        changed = dict(widths)
        for direction in generator.choice(((1,), (-1, 1), (-1, 1), (-1, -1, 1))):
            names, options = generator.choice(free)
            position = options.index(changed[names[0]]) - direction
            if 0 <= position < len(options):
                changed.update(dict.fromkeys(names, options[position]))
        precision = Precision.of(changed)
        if precision != subnet.precision and precision not in found:
            candidate = space.evaluate(precision)
            if space.within(candidate.cost, budgets):
                found[precision] = candidate
        if len(found) == count:
            break
    return list(found.values())


def random_subnets(
    space: SearchSpace, budgets: Mapping[str, float], count: int, *, seed: int = 0, patience: int = 50
) -> list[SubNet]:
    """Return distinct random SubNets that use a budget up: widths are drawn, then raised or lowered at random until no
    single step up is left within the budgets. They are what a frontier is compared with.

    Args:
        space: what may be chosen.
        budgets: as for `SearchSpace.solve`.
        count: how many; fewer are returned if they are hard to find.
        seed: of the draws.
        patience: the search ends after `patience * count` draws in a row without a new SubNet.
    """  # noqa: D205
    generator = random.Random(seed)
    found: dict[Precision, SubNet] = {}
    fruitless = 0
    while len(found) < count and fruitless < patience * count:
        widths = {
            name: bits for names, options in space.choices for bits in [generator.choice(options)] for name in names
        }
        subnet = _fill(space, widths, budgets, generator)
        fruitless += 1
        if subnet is not None and subnet.precision not in found:
            found[subnet.precision] = subnet
            fruitless = 0
    return list(found.values())


def _fill(
    space: SearchSpace, widths: dict[str, int], budgets: Mapping[str, float], generator: random.Random
) -> SubNet | None:
    order = list(space.choices)
    while not space.within(space.costs.of(widths), budgets):
        lower = [(n, o) for n, o in order if widths[n[0]] != o[-1]]
        if not lower:
            return None
        names, options = generator.choice(lower)
        widths.update(dict.fromkeys(names, options[options.index(widths[names[0]]) + 1]))
    generator.shuffle(order)
    for names, options in order:
        for bits in options:
            raised = {**widths, **dict.fromkeys(names, bits)}
            if bits > widths[names[0]] and space.within(space.costs.of(raised), budgets):
                widths = raised
                break
    return space.evaluate(Precision.of(widths))
