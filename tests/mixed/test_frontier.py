"""Measurement, refinement and the Pareto frontier."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bitswitch as bs
from bitswitch.errors import ConfigError
from bitswitch.mixed import (
    InfeasibleError,
    Measured,
    Measurements,
    SearchSpace,
    explore,
    fitted,
    measure_costs,
    pareto,
    random_subnets,
    rank_correlations,
    refine,
    to_csv,
    to_rows,
)
from bitswitch.mixed.cost import Cost, CostTable, LayerCost
from bitswitch.mixed.objective import perturbation
from bitswitch.mixed.space import SubNet
from bitswitch.precision import Precision
from tests.networks import images

NAMES = ("2", "4", "6", "8", "10")
TRACES = dict.fromkeys(NAMES, 1.0)
# What really counts differs from the proxy, which takes all layers for equal.
WORTH = dict(zip(NAMES, (5.0, 1.0, 3.0, 0.5, 0.1), strict=True))


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(*(layer for _ in range(7) for layer in (nn.Linear(8, 8), nn.ReLU())))
    model = bs.prepare(net, bits=(4, 3, 2), example_inputs=torch.zeros(1, 8))
    return SearchSpace(measure_costs(model), perturbation(model, TRACES))


class Judge:
    def __init__(self) -> None:
        self.calls: list[Precision] = []

    def __call__(self, precisions: Sequence[Precision]) -> list[float]:
        self.calls.extend(precisions)
        return [-sum(WORTH[name] * 4.0**-bits for name, bits in p.layers) for p in precisions]


@pytest.mark.parametrize("average", [2.2, 2.6, 3.0, 3.4])
def test_refinement_is_never_worse_and_keeps_the_budget(space: SearchSpace, average: float) -> None:
    budgets = {"average_bits": average}
    judge = Judge()
    measurements = Measurements(judge)
    best = refine(space, measurements, budgets, rounds=30, neighbours=40)
    (start,) = measurements(space.solve(budgets))
    assert best.score >= start.score
    assert best.subnet.cost.average_bits <= average + 1e-9
    assert len(judge.calls) == len(set(judge.calls)) == len(measurements)
    every = random_subnets(space, budgets, 100, patience=30)
    assert best.score >= max(m.score for m in Measurements(Judge())(every)) - 1e-12


def test_refinement_starts_from_what_is_given(space: SearchSpace) -> None:
    alike, dearer = (space.evaluate(Precision.of(dict.fromkeys(NAMES, bits))) for bits in (3, 4))

    def prefers_uniform(precisions: Sequence[Precision]) -> list[float]:
        return [float(len({bits for _, bits in p.layers}) == 1) for p in precisions]

    budgets = {"average_bits": 3.2}
    without = refine(space, Measurements(prefers_uniform), budgets, rounds=1, neighbours=1)
    best = refine(space, Measurements(prefers_uniform), budgets, starts=[dearer, alike], rounds=1, neighbours=1)
    assert (without.score, best.score) == (0, 1)
    assert best.subnet == alike


def test_measurements_resume(space: SearchSpace, tmp_path) -> None:
    path = tmp_path / "scores.json"
    first = Judge()
    before = refine(space, Measurements(first, path, "net"), {"average_bits": 3.0})
    again = Judge()
    assert refine(space, Measurements(again, path, "net"), {"average_bits": 3.0}) == before
    assert not again.calls
    with pytest.raises(ConfigError, match="another network"):
        Measurements(again, path, "other")
    path.write_text('{"context": 1}')
    with pytest.raises(ConfigError, match="no measurements"):
        Measurements(again, path, "net")


def test_measurements_of_many_layers_with_any_names_resume(tmp_path) -> None:
    names = ["", "a,b", "a=b", "default", " x", *map(str, range(300))]
    costs = CostTable({name: LayerCost(name, (4, 3, 2), 8, owner=name) for name in names})
    space = SearchSpace(costs, {name: {4: 0.0, 3: 1.0, 2: 2.0} for name in names})
    generator = random.Random(0)
    subnets = [space.evaluate(Precision.of({n: generator.choice((4, 3, 2)) for n in names})) for _ in range(900)]
    subnets.append(SubNet(Precision.of({"a,b": 3}, default=2), costs.of(2), 0.0))
    path = tmp_path / "scores.json"
    scores = Measurements(lambda part: [float(hash(p) % 1000) for p in part], path, at_once=1000)(subnets)

    def never(_: Sequence[Precision]) -> list[float]:
        raise AssertionError("everything is known")

    assert Measurements(never, path)(subnets) == scores


@pytest.mark.parametrize(
    "table",
    [
        {"layers": ["a"], "default": None, "scores": {"44": 1.0}},
        {"layers": ["a"], "default": None, "scores": {"x": 1.0}},
        {"layers": ["a"], "default": None, "scores": {"4": "1"}},
        {"layers": [1], "default": None, "scores": {}},
        {"layers": ["a"], "scores": {}},
        7,
    ],
)
def test_malformed_measurements(tmp_path, table: Any) -> None:
    path = tmp_path / "scores.json"
    Measurements(lambda part: [1.0] * len(part), path)([SubNet(Precision.of(4), Cost(4.0, 4.0, 1), 0.0)])
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "tables": [table]}))
    with pytest.raises(ConfigError, match="malformed"):
        Measurements(lambda part: [1.0] * len(part), path)


def test_starts_outside_of_the_space_are_refused(space: SearchSpace) -> None:
    limited = SearchSpace(space.costs, {name: {4: 0.0, 3: 1.0, 2: 2.0} for name in NAMES}, {"2": 4})
    start = space.evaluate(Precision.of(dict.fromkeys(NAMES, 2)))
    with pytest.raises(bs.errors.PrecisionError, match="layer '2' is limited to 4 bits; got 2"):
        refine(limited, Measurements(Judge()), {"average_bits": 3.0}, starts=[start])


def test_random_subnets_use_the_budget_up(space: SearchSpace) -> None:
    found = random_subnets(space, {"average_bits": 2.6}, 30)
    assert len({s.precision for s in found}) == 30
    assert all(s.cost.average_bits == pytest.approx(2.6) for s in found)


def test_random_subnets_of_a_budget_that_few_fit(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("bitswitch.mixed.refine")  # the package has a function of that name
    fill, draws = module._fill, []
    monkeypatch.setattr(module, "_fill", lambda *args: draws.append(args) or fill(*args))
    # One layer of five may have 3 bits.
    found = random_subnets(space, {"average_bits": 2.2}, 10)
    assert len({s.precision for s in found}) == len(found) == 5
    assert 500 < len(draws) < 700
    draws.clear()
    assert random_subnets(space, {"average_bits": 1.9}, 4) == []
    assert len(draws) == 200


def test_pareto_frontier(space: SearchSpace) -> None:
    def at(*bits: int) -> Measured:
        subnet = space.evaluate(Precision.of(dict(zip(NAMES, bits, strict=True))))
        return Measured(subnet, {10: 0.5, 11: 0.4, 12: 0.7, 20: 0.7}[sum(bits)])

    rows = [at(2, 2, 2, 2, 2), at(3, 2, 2, 2, 2), at(3, 3, 2, 2, 2), at(4, 4, 4, 4, 4)]
    assert pareto(rows) == [rows[0], rows[2]]
    with pytest.raises(ConfigError, match="no cost 'money'"):
        pareto(rows, "money")
    with pytest.raises(ConfigError, match="not measured"):
        pareto(rows, "bitops")
    read = list(csv.DictReader(io.StringIO(to_csv(to_rows(rows)))))
    assert [float(row["score"]) for row in read] == [m.score for m in rows]
    assert Precision.parse(read[1]["precision"]) == rows[1].subnet.precision


def test_bad_scores(space: SearchSpace) -> None:
    with pytest.raises(ConfigError, match="a finite number for each of 1"):
        Measurements(lambda _: [float("nan")])(space.solve({"average_bits": 3}))
    with pytest.raises(ConfigError, match="a finite number for each of 1"):
        Measurements(lambda _: [float("inf")])(space.solve({"average_bits": 3}))


def test_layers_that_share_a_weight_count_once_in_what_is_fitted() -> None:
    owners = {"a": "a", "b": "a", "c": "c", "d": "d"}
    costs = CostTable({n: LayerCost(n, (4, 3, 2), 10 * (n == owner), owner=owner) for n, owner in owners.items()})
    worth = {"a": {4: 2.0, 3: 1.0, 2: 0.0}, "c": {4: 2.9, 3: 1.4, 2: 0.0}, "d": {4: 1.1, 3: 0.7, 2: 0.0}}
    space = SearchSpace(costs, worth)
    choices = [dict(zip("acd", bits, strict=True)) for bits in itertools.product((4, 3, 2), repeat=3)]
    rows = [
        Measured(space.evaluate(Precision.of({**c, "b": c["a"]})), sum(worth[n][b] for n, b in c.items()))
        for c in choices
    ]
    table = fitted(space, rows)
    assert set(table) == {"a", "c", "d"}
    assert rank_correlations(rows, {"fitted": table})["fitted"].rho == pytest.approx(1)


def test_exploration(space: SearchSpace, tmp_path) -> None:
    path = tmp_path / "scores.json"
    budgets = [{"average_bits": 2.4}, {"average_bits": 3.2}]
    told: list[str] = []
    found = explore(space, Measurements(Judge(), path), budgets, num_random=8, progress=told.append)
    assert [row.subnet.cost.average_bits for row in found.uniform] == [4, 3, 2]
    assert len(told) == 3
    assert found.within[1].best.score >= max(found.within[0].best.score, found.uniform[1].score)
    for part, budget in zip(found.within, budgets, strict=True):
        assert part.best.score >= part.optimum.score
        assert part.best_random == max(part.random, key=lambda row: row.score)
        assert all(space.within(row.subnet.cost, budget) for row in (part.optimum, part.best, *part.random))
    frontier = found.frontier()
    assert frontier == pareto(found.measured)
    assert {row.subnet.precision for row in frontier} <= {row.subnet.precision for row in found.chosen}
    assert found.costs == ["average_bits", "weighted_bits", "weight_bytes"]
    assert found.origin(found.within[0].optimum.subnet.precision) == "programme"
    assert found.origin(found.uniform[1].subnet.precision) == "uniform"
    again = Judge()
    assert explore(space, Measurements(again, path), budgets, num_random=8) == found
    assert not again.calls
    # Without chance and refinement there are the uniform precisions and the optima.
    plain = explore(space, Measurements(Judge()), budgets, num_random=0, rounds=0)
    assert len(plain.measured) == 5
    assert plain.within[0].best_random is None
    with pytest.raises(InfeasibleError, match="smallest feasible"):
        explore(space, Measurements(again), [*budgets, {"average_bits": 1.5}])
    assert not again.calls


def noisy(precisions: Sequence[Precision]) -> list[float]:
    """Return a sum over the layers of what their widths are worth, and some noise."""
    noise = [random.Random(str(p)).gauss(0, 0.002) for p in precisions]
    return [score + error for score, error in zip(Judge()(precisions), noise, strict=True)]


def test_a_fitted_objective_finds_what_widths_are_worth(space: SearchSpace) -> None:
    rows = Measurements(noisy)([s for a in (2.4, 3.0, 3.6) for s in random_subnets(space, {"average_bits": a}, 20)])
    table = fitted(space, rows)
    assert table.keys() == WORTH.keys()
    for name, worth in WORTH.items():
        for bits in (4, 3):
            # Against the lowest width, which is the zero.
            assert table[name][bits] - table[name][2] == pytest.approx(worth * (4.0**-bits - 4.0**-2), abs=0.01)
    budgets = {"average_bits": 2.6}
    (found,) = space.minimising(table).solve(budgets)
    every = Measurements(Judge())(random_subnets(space, budgets, 200))
    (score,) = Judge()([found.precision])
    assert score >= max(row.score for row in every) - 1e-12
    # The proxy takes all layers for equal, and the space itself still does.
    assert space.solve(budgets)[0].precision != found.precision


def test_what_nothing_can_be_learned_from(space: SearchSpace) -> None:
    subnets = random_subnets(space, {"average_bits": 3.0}, 10)
    with pytest.raises(ConfigError, match="5 layers with a choice need 10 SubNets; got 9"):
        fitted(space, Measurements(Judge())(subnets[:9]))
    pinned = SearchSpace(space.costs, {name: {4: 0.0, 3: 0.0, 2: 0.0} for name in NAMES}, {"*": 3})
    with pytest.raises(ConfigError, match="no layer has a choice of widths"):
        fitted(pinned, Measurements(Judge())(subnets))
    with pytest.raises(ConfigError, match="all 10 SubNets have the same score"):
        fitted(space, Measurements(lambda precisions: [0.5] * len(precisions))(subnets))


def test_exploration_ends_with_what_it_has_learned(space: SearchSpace) -> None:
    budgets = [{"average_bits": 2.4}, {"average_bits": 3.2}]
    options = {"num_random": 20, "rounds": 0}
    without = explore(space, Measurements(noisy), budgets, num_fitted=0, **options)
    found = explore(space, Measurements(noisy), budgets, num_fitted=3, **options)
    assert [part.fitted for part in without.within] == [(), ()]
    for part, before, budget in zip(found.within, without.within, budgets, strict=True):
        assert len(part.fitted) == 3
        assert all(space.within(row.subnet.cost, budget) for row in part.fitted)
        assert part.best.score == max(before.best.score, *(row.score for row in part.fitted)) > before.best.score
        assert part.best.subnet == space.evaluate(part.best.subnet.precision)
        assert found.origin(part.best.subnet.precision) == "fitted"


def test_what_the_fitted_objective_finds_serves_later_budgets(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {name: {bits: worth * 4.0**-bits for bits in (4, 3, 2)} for name, worth in WORTH.items()}
    monkeypatch.setattr(importlib.import_module("bitswitch.mixed.frontier"), "fitted", lambda *_: table)
    budgets = [{"average_bits": average} for average in (2.6, 3.6)]
    good, other = (space.minimising(table).solve(budget)[0].precision for budget in budgets)

    def scores(precisions: Sequence[Precision]) -> list[float]:
        return [float(precision == good) for precision in precisions]

    found = explore(space, Measurements(scores), budgets, num_random=0, rounds=0, num_fitted=1)
    assert [part.fitted[0].subnet.precision for part in found.within] == [good, other]
    assert [part.best.subnet.precision for part in found.within] == [good, good]


def test_too_few_measurements_for_a_fitted_objective(space: SearchSpace) -> None:
    told: list[str] = []
    found = explore(space, Measurements(Judge()), [{"average_bits": 3}], num_random=0, rounds=0, progress=told.append)
    assert told[-1] == "no objective was fitted: 5 layers with a choice need 10 SubNets; got 3"
    assert found.within[0].fitted == ()


def test_measurements_are_kept_as_they_come(space: SearchSpace, tmp_path) -> None:
    subnets = random_subnets(space, {"average_bits": 3.0}, 7)

    def stopped(precisions: Sequence[Precision]) -> list[float]:
        if len(judge.calls) >= 4:
            raise KeyboardInterrupt
        return judge(precisions)

    judge = Judge()
    with pytest.raises(KeyboardInterrupt):
        Measurements(stopped, tmp_path / "scores.json", at_once=2)(subnets)
    rest = Judge()
    measurements = Measurements(rest, tmp_path / "scores.json")
    measurements(subnets)
    assert len(rest.calls) == 3
    assert not set(rest.calls) & set(judge.calls)
    assert [row.subnet for row in measurements.asked] == subnets


def test_rank_correlation(space: SearchSpace) -> None:
    # The proxy that is right, its opposite, and one that knows nothing.
    right = {name: {bits: WORTH[name] * 4.0**-bits for bits in (4, 3, 2)} for name in NAMES}
    wrong = {name: {bits: -value for bits, value in row.items()} for name, row in right.items()}
    subnets = [s for average in (2.6, 3.0, 3.4) for s in random_subnets(space, {"average_bits": average}, 20)]
    found = rank_correlations(Measurements(Judge())(subnets), {"right": right, "wrong": wrong})
    assert found["right"].rho == pytest.approx(1)
    assert found["right"].within == pytest.approx(1)
    assert found["wrong"].rho == pytest.approx(-1)
    bits = found["average bits"]
    assert bits.within is None
    assert -0.2 < bits.low < bits.rho < bits.high < 1
    assert bits.count == 60
    # The standard error of artanh ρ at n = 60, by hand.
    assert np.arctanh(bits.high) - np.arctanh(bits.rho) == pytest.approx(1.96 * ((1 + bits.rho**2 / 2) / 57) ** 0.5)
    with pytest.raises(ConfigError, match="at least 4"):
        rank_correlations([], {})


def test_with_the_evaluation_of_the_library() -> None:
    net = nn.Sequential(nn.Flatten(), *(layer for _ in range(3) for layer in (nn.Linear(192, 192), nn.ReLU())))
    model = bs.prepare(net, bits=(4, 2), example_inputs=images())
    bs.calibrate(model, [images(8)])
    batches = [(images(8), torch.arange(8))]
    costs = measure_costs(model)
    space = SearchSpace(costs, perturbation(model, {"3": 1.0}))
    measurements = Measurements(lambda precisions: list(bs.evaluate(model, batches, precisions).values()))
    best = refine(space, measurements, {"average_bits": 4.0})
    assert 0.0 <= best.score <= 1.0
