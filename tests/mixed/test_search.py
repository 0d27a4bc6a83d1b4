"""Costs and the search on prepared models."""

from __future__ import annotations

import copy
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bitswitch as bs
from bitswitch.errors import ConfigError, PrecisionError, UnknownLayerError
from bitswitch.mixed import (
    CostTable,
    InfeasibleError,
    SearchSpace,
    Sensitivity,
    Trace,
    additive_latency,
    measure_costs,
    search,
)
from bitswitch.mixed.cost import LayerCost
from bitswitch.mixed.objective import perturbation, weighted_bits
from bitswitch.mixed.sensitivity import fingerprint
from tests.networks import images, residual

TRACES = {"conv1": 30.0, "conv2": 12.0, "project": 5.0}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return bs.prepare(residual(), bits=(8, 4, 3, 2), example_inputs=images())


def brute_force(model: nn.Module, costs: CostTable, **budgets: float) -> float:
    table = perturbation(model, TRACES)
    best = math.inf
    for widths in itertools.product((8, 4, 3, 2), repeat=3):
        choice = dict(zip(TRACES, widths, strict=True))
        cost = costs.of(choice)
        if all(getattr(cost, name) <= budget + 1e-9 for name, budget in budgets.items()):
            best = min(best, sum(table[name][bits] for name, bits in choice.items()))
    return best


def test_costs_of_midrise_weights_and_wider_inputs() -> None:
    plain, other = (
        measure_costs(bs.prepare(residual(), bits=(8, 4, 2), example_inputs=images(1), **options), images(1)).of(2)
        for options in ({}, {"midrise": (2,), "activation_bits": {2: 4}})
    )
    assert plain.weight_bytes - other.weight_bytes == 896 / 8
    assert plain.bitops is not None
    assert other.bitops == 2 * plain.bitops


def test_costs_by_hand(model: nn.Module) -> None:
    costs = measure_costs(model, images(1))
    # conv1 is 4 → 8 channels, 3×3, on 4×4 outputs; conv2 8 → 8; project 4 → 8, 1×1.
    assert [costs.layers[n].num_macs for n in TRACES] == [16 * 8 * 36, 16 * 8 * 72, 16 * 8 * 4]
    cost = costs.of({"conv1": 8, "conv2": 4, "project": 2})
    assert cost.average_bits == pytest.approx(14 / 3)
    assert cost.weighted_bits == pytest.approx((288 * 8 + 576 * 4 + 32 * 2) / 896)
    assert cost.bitops == 16 * 8 * (36 * 64 + 72 * 16 + 4 * 4)
    assert cost.latency is None
    assert measure_costs(model).of(4).bitops is None


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bytes_are_those_of_the_summary(model: nn.Module, bits: int) -> None:
    cost = measure_costs(model).of(bits)
    assert cost.weight_bytes == bs.summary(model).bytes_at(bits)
    assert cost.average_bits == cost.weighted_bits == bits


def test_macs_of_transposed_and_grouped_convolutions_and_reused_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv1d(4, 8, 3, groups=2)
            self.b = nn.ConvTranspose1d(8, 6, 3, stride=2, groups=2)
            self.c = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.b(self.a(x)).movedim(1, -1)
            return self.c(self.c(x))

    net = bs.prepare(Net(), bits=(8, 2), example_inputs=torch.zeros(1, 4, 7), force=("a", "c"))
    costs = measure_costs(net, torch.zeros(1, 4, 7))
    # a: 5 outputs × 8 channels × 2 inputs × 3; b: 8 × 5 inputs × 3 outputs × 3; c: 11 positions × 36, twice.
    assert [layer.num_macs for layer in costs.layers.values()] == [5 * 8 * 6, 40 * 9, 2 * 11 * 36]


@pytest.mark.parametrize(
    "budgets",
    [
        {"average_bits": 3.0},
        {"weight_bytes": 900.0},
        {"bitops": 2.5e5},
        {"average_bits": 4.0, "weight_bytes": 1000.0, "bitops": 4e5},
        {"weighted_bits": 3.3},
    ],
)
def test_search_equals_brute_force(model: nn.Module, budgets: dict[str, float]) -> None:
    costs = measure_costs(model, images(1))
    minimum = costs.of(2)
    budgets = {n: max(b, getattr(minimum, n)) for n, b in budgets.items()}
    found = search(model, TRACES, example_inputs=images(1), **budgets)
    assert len(found) == 1
    assert found[0].sensitivity == pytest.approx(brute_force(model, costs, **budgets), rel=1e-12)
    assert found[0].cost == costs.of(found[0].precision)
    bs.switch(copy.deepcopy(model), found[0].precision)


def test_sequences_of_budgets_make_a_frontier(model: nn.Module) -> None:
    found = search(model, TRACES, average_bits=(2, 3, 4, 8))
    values = [subnet.sensitivity for subnet in found]
    assert values == sorted(values, reverse=True)
    assert found[0].precision == bs.Precision.of(dict.fromkeys(TRACES, 2))
    best = search(model, TRACES, average_bits=4, num_solutions=5)
    assert len({subnet.precision for subnet in best}) == 5
    assert [s.sensitivity for s in best] == sorted(s.sensitivity for s in best)


def test_objectives(model: nn.Module) -> None:
    table = perturbation(model, TRACES)
    layer = model.get_submodule("conv2")
    with bs.at(model, 3), torch.no_grad():
        error = float((layer.quantized_weight() - layer.weight).square().sum())
    assert table["conv2"][3] == pytest.approx(12.0 / 576 * error, rel=1e-5)
    assert weighted_bits(model, TRACES)["conv1"][4] == -30 / 288 * 4
    (subnet,) = search(model, TRACES, average_bits=10 / 3, objective="weighted-bits")
    assert dict(subnet.precision.layers)["project"] >= 4  # the largest trace a weight: 5/32
    own = {name: {8: 3.0, 4: 2.0, 3: 1.0, 2: 0.0} for name in TRACES}
    (subnet,) = search(model, TRACES, average_bits=8, objective=own)
    assert set(dict(subnet.precision.layers).values()) == {2}


def test_tied_layers_are_equal() -> None:
    net = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(8, 8), nn.ReLU())))
    net[4].weight = net[2].weight
    model = bs.prepare(net, bits=(8, 4, 2), example_inputs=torch.zeros(1, 8))
    (subnet,) = search(model, {"2": 100.0, "6": 1.0}, average_bits=6.0)
    widths = dict(subnet.precision.layers)
    assert widths == {"2": 8, "4": 8, "6": 2}
    assert measure_costs(model).of(4).weight_bytes == bs.summary(model).bytes_at(4)


def test_limits_of_layers(model: nn.Module) -> None:
    (subnet,) = search(model, TRACES, average_bits=4, layer_bits={"conv*": (3, 2), "project": 8})
    widths = dict(subnet.precision.layers)
    assert widths["project"] == 8
    assert max(widths["conv1"], widths["conv2"]) <= 3
    with pytest.raises(UnknownLayerError, match="'nothing' matches no quantized layer"):
        search(model, TRACES, average_bits=4, layer_bits={"nothing": 3})
    with pytest.raises(PrecisionError, match="was not prepared for 5 bits"):
        search(model, TRACES, average_bits=4, layer_bits={"conv1": 5})


def test_latency_table(model: nn.Module) -> None:
    seconds = {name: {8: 8.0, 4: 4.0, 3: 3.5, 2: 3.0} for name in TRACES}
    (subnet,) = search(model, TRACES, latency=12, latency_table=seconds)
    assert subnet.cost.latency is not None
    assert subnet.cost.latency <= 12
    for broken, message in [
        ({"x": {}}, "'x'"),
        ({}, "lacks layer 'conv1'"),
        ({**seconds, "conv2": {8: 1.0}}, "at 4 bits"),
    ]:
        with pytest.raises(ConfigError, match=message):
            search(model, TRACES, latency=12, latency_table=broken)

    def measure(precision: bs.Precision) -> float:
        return sum(2.0 + bits for _, bits in precision.layers)

    table = additive_latency(measure, measure_costs(model).available)
    for name, row in table.items():
        assert row[8] - row[2] == pytest.approx(6.0), name
    assert sum(row[8] for row in table.values()) == pytest.approx(30.0)


def _space(costs: dict[str, LayerCost], layer_bits: Any = None) -> SearchSpace:
    objective = {n: dict(zip(c.bits, range(9), strict=False)) for n, c in costs.items() if c.owner in ("", n)}
    return SearchSpace(CostTable(costs), objective, layer_bits)


@pytest.mark.parametrize("name", ["average_bits", "weighted_bits"])
def test_the_smallest_budget_that_is_named_is_feasible(name: str) -> None:
    space = _space({n: LayerCost(n, (4, 3, 2), 8, owner=n) for n in "abc"}, {"a": 3})
    with pytest.raises(InfeasibleError, match="is 2.33334 bits, not 2.33333") as caught:
        space.solve({name: 2.33333})
    smallest = float(re.findall(r"is ([\d.]+) bits", str(caught.value))[0])
    assert space.solve({name: smallest})


def test_large_integer_budgets_are_kept_to_the_last_unit() -> None:
    layers = {
        n: LayerCost(n, (8, 4), 4 * 10**9 + 8 * i, num_macs=3 * 10**12 + i, num_inputs=1, owner=n)
        for i, n in enumerate("ab")
    }
    space = _space(layers)
    for name in ("bitops", "weight_bytes"):
        full = getattr(space.costs.of(8), name)
        assert getattr(space.solve({name: full})[0].cost, name) == full
        (found,) = space.solve({name: full - 1})
        assert getattr(found.cost, name) < full
        assert not space.within(space.costs.of(8), {name: full - 1})
        least = getattr(space.costs.of(4), name)
        with pytest.raises(InfeasibleError, match=f"is {least}[ ,].*not {least - 1}"):
            space.solve({name: least - 1})


def test_planes_of_a_shared_weight_are_those_that_any_of_its_layers_needs() -> None:
    layers = {"a": LayerCost("a", (8, 4, 2), 64, owner="a"), "b": LayerCost("b", (8, 4, 2), 0, owner="a")}
    costs = CostTable(layers)
    assert [costs.of({"a": a, "b": b}).weight_bytes for a, b in ((2, 8), (8, 2), (2, 2))] == [64, 64, 24]
    layers = {"b": layers["b"], "a": layers["a"]}
    assert CostTable(layers).of({"a": 2, "b": 4}).weight_bytes == 40


def test_objectives_must_be_complete_and_finite() -> None:
    costs = {n: LayerCost(n, (4, 2), 8, owner=n) for n in "ab"}
    good = {"a": {4: 0.0, 2: 1.0}, "b": {4: np.float32(0), 2: 1}}
    space = SearchSpace(CostTable(costs), good, {"a": np.int64(4)})
    assert dict(space.solve({"average_bits": 4})[0].precision.layers) == {"a": 4, "b": 4}
    for bad in ({}, {4: 0.0}, {4: 0.0, 2: math.nan}, {4: math.inf, 2: 0.0}):
        with pytest.raises(ConfigError, match="no finite value for layer 'b' at"):
            space.minimising({"a": good["a"], "b": bad})


def test_infeasible_budgets_are_explained(model: nn.Module) -> None:
    with pytest.raises(InfeasibleError, match="smallest feasible average width is 2 bits, not 1.5"):
        search(model, TRACES, average_bits=1.5)
    smallest = measure_costs(model).of(2).weight_bytes
    with pytest.raises(InfeasibleError, match=f"smallest feasible size is {smallest} bytes"):
        search(model, TRACES, weight_bytes=smallest - 1)
    search(model, TRACES, weight_bytes=smallest)
    seconds = {name: {8: 1.0, 4: 2.0, 3: 3.0, 2: 4.0} for name in TRACES}
    with pytest.raises(InfeasibleError, match="while the others hold") as caught:
        search(model, TRACES, average_bits=2, latency=5, latency_table=seconds)
    assert "latency is 12 s" in str(caught.value)
    assert "average width is 5.33334 bits" in str(caught.value)


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ({"conv1": 1.0}, "no number for layer 'conv2'"),
        ({**TRACES, "conv1": math.nan}, "'conv1' must be finite"),
        ({**TRACES, "conv1": -1.0}, "not negative"),
    ],
)
def test_bad_sensitivities(model: nn.Module, traces: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(model, traces, average_bits=3)


def test_bad_requests(model: nn.Module) -> None:
    with pytest.raises(UnknownLayerError, match="'conv9'"):
        search(model, {**TRACES, "conv9": 1.0}, average_bits=3)
    for arguments, message in [
        ({}, "at least one budget"),
        ({"average_bits": ()}, "not empty"),
        ({"average_bits": (2, 3), "weight_bytes": (1, 2, 3)}, "equally long"),
        ({"average_bits": math.nan}, "positive number"),
        ({"average_bits": -2}, "positive number"),
        ({"bitops": 1e6}, "needs example_inputs"),
        ({"latency": 1.0}, "needs a latency_table"),
        ({"average_bits": 3, "objective": "hope"}, "objective must be"),
        ({"average_bits": 3, "num_solutions": 0}, "num_solutions"),
    ]:
        with pytest.raises(ConfigError, match=message):
            search(model, TRACES, **arguments)


def test_numbers_and_arrays_of_numpy_are_budgets(model: nn.Module) -> None:
    assert search(model, TRACES, average_bits=np.array([4.0, 6.0])) == search(model, TRACES, average_bits=[4, 6])
    for six in (np.float32(6), np.array(6.0)):
        assert search(model, TRACES, average_bits=six) == search(model, TRACES, average_bits=6)


def test_bad_questions_to_a_space(model: nn.Module) -> None:
    space = SearchSpace(measure_costs(model), perturbation(model, TRACES))
    cost = space.costs.of(4)
    for count in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="must be a positive integer"):
            space.solve({"average_bits": 4}, count)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="no budget 'money'"):
        space.within(cost, {"money": 1})
    with pytest.raises(ConfigError, match="bitops needs example_inputs"):
        space.within(cost, {"bitops": 1e9})
    counted = SearchSpace(measure_costs(model, images(1)), perturbation(model, TRACES))
    with pytest.raises(ConfigError, match="'bitops' was not measured"):
        counted.within(cost, {"bitops": 1e9})


def test_sensitivity_files(model: nn.Module, tmp_path) -> None:
    traces = {name: Trace(value, 0.1, 10) for name, value in TRACES.items()}
    own = Sensitivity(traces, "hessian", 8, 256, fingerprint(model))
    assert fingerprint(model) == fingerprint(residual())
    own.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json", model) == own
    assert search(model, own, average_bits=3) == search(model, TRACES, average_bits=3)
    other = bs.prepare(
        nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), bits=(8, 2), example_inputs=torch.zeros(1, 4)
    )
    with pytest.raises(ConfigError, match="another model; it has a layer 'conv1'"):
        Sensitivity.load(tmp_path / "s.json", other)
    with pytest.raises(ConfigError, match="cannot be read"):
        Sensitivity.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="no sensitivity"):
        Sensitivity.from_json({"format": "x"})


def test_zero_and_negative_estimates(model: nn.Module) -> None:
    def of(value: float, error: float) -> Sensitivity:
        layers = {name: Trace(trace, 0.1, 10) for name, trace in TRACES.items()}
        return Sensitivity({**layers, "conv2": Trace(value, error, 10)}, fingerprint=fingerprint(model))

    with pytest.warns(bs.errors.BitswitchWarning, match=r"count as zero \(conv2\)"):
        (subnet,) = search(model, of(1.0, 0.6), average_bits=4)
    assert dict(subnet.precision.layers)["conv2"] == 2
    with pytest.warns(bs.errors.BitswitchWarning, match="count as zero"):
        search(model, of(-1.0, 0.6), average_bits=4)
    with pytest.raises(ConfigError, match="gauss-newton"):
        search(model, of(-1.0, 0.3), average_bits=4)
    with pytest.raises(ConfigError, match="nan"):
        search(model, of(math.nan, 0.3), average_bits=4)
