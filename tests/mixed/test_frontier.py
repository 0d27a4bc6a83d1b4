"""Measurement, refinement and the Pareto frontier."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import bitswitch as bs
from bitswitch.errors import ConfigError
from bitswitch.mixed import Measured, Measurements, SearchSpace, measure_costs, pareto, random_subnets, refine, to_csv
from bitswitch.mixed.objective import perturbation
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
    every = random_subnets(space, budgets, 100, attempts=3000)
    assert best.score >= max(m.score for m in Measurements(Judge())(every)) - 1e-12


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


def test_random_subnets_use_the_budget_up(space: SearchSpace) -> None:
    found = random_subnets(space, {"average_bits": 2.6}, 30)
    assert len({s.precision for s in found}) == 30
    assert all(s.cost.average_bits == pytest.approx(2.6) for s in found)


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
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [float(row["score"]) for row in read] == [m.score for m in rows]
    assert Precision.parse(read[1]["precision"]) == rows[1].subnet.precision


def test_bad_scores(space: SearchSpace) -> None:
    with pytest.raises(ConfigError, match="a number for each of 1"):
        Measurements(lambda _: [float("nan")])(space.solve({"average_bits": 3}))


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
