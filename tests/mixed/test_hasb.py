"""Roulette, σ and the sampler against the paper's formulas."""

from __future__ import annotations

import math
import random
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

import bitswitch as bs
from bitswitch.errors import ConfigError
from bitswitch.mixed import HASB, UniformSampling
from bitswitch.mixed.hasb import roulette_probabilities, threshold_of
from tests.networks import images, residual

LAYERS = {"low": (4, 3, 2), "high": (4, 3, 2), "pinned": (8,)}
TRACES = {"low": 1.0, "high": 9.0}
DRAWS = 6000


def frequencies(sampler: HASB | UniformSampling, layer: str, bits: int, total: int = DRAWS) -> list[int]:
    counts = Counter(
        dict(sampler.sample(step=step, total_steps=total, bits=bits, layers=LAYERS).layers)[layer]
        for step in range(total)
    )
    return [counts[b] for b in (4, 3, 2)]


def test_both_cases_of_algorithm_1() -> None:
    assert roulette_probabilities(0.9, 1.0, (8, 6, 4, 2)) == [0.25] * 4
    assert roulette_probabilities(1.0, 1.0, (8, 6, 4, 2)) == [0.4, 0.3, 0.2, 0.1]


def test_smooth_roulette_lies_between_the_cases() -> None:
    widths = (8, 6, 4, 2)
    assert roulette_probabilities(0.0, 1.0, widths, smooth=True) == roulette_probabilities(0.0, 1.0, widths)
    assert roulette_probabilities(0.0, 0.0, widths, smooth=True) == [0.25] * 4
    assert roulette_probabilities(1e30, 1.0, widths, smooth=True) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    expected = [math.sqrt(b) / sum(map(math.sqrt, widths)) for b in widths]
    assert roulette_probabilities(5.0, 5.0, widths, smooth=True) == pytest.approx(expected)
    below, above = (roulette_probabilities(t, 1.0, widths, smooth=True) for t in (0.99, 1.01))
    assert below == pytest.approx(above, abs=0.003)
    sampler = HASB({"low": 1.0, "high": 4.0}, total_epochs=1, threshold="smooth")
    counts = frequencies(sampler, "high", 4)
    powers = [b ** (4 / 6) for b in (4, 3, 2)]
    assert chisquare(counts, [p / sum(powers) * DRAWS for p in powers]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("layer", "sigma", "bits", "expected"),
    [
        ("low", 1.0, 4, [1 / 3, 1 / 3, 1 / 3]),
        ("high", 1.0, 4, [4 / 9, 3 / 9, 2 / 9]),
        ("low", 0.5, 3, [1 / 6, 1 / 2 + 1 / 6, 1 / 6]),
        ("high", 0.5, 2, [2 / 9, 1.5 / 9, 1 / 2 + 1 / 9]),
    ],
)
def test_frequencies_pass_a_chi_square_test(layer: str, sigma: float, bits: int, expected: list[float]) -> None:
    sampler = HASB(TRACES, total_epochs=1, sigma=sigma)
    counts = frequencies(sampler, layer, bits)
    assert chisquare(counts, [p * DRAWS for p in expected]).pvalue > 1e-3


def test_layers_draw_independently() -> None:
    sampler = UniformSampling(total_epochs=1)
    pairs = Counter()
    for step in range(DRAWS):
        widths = dict(sampler.sample(step=step, total_steps=DRAWS, bits=4, layers=LAYERS).layers)
        pairs[widths["low"], widths["high"]] += 1
    assert chisquare([pairs[a, b] for a in (4, 3, 2) for b in (4, 3, 2)]).pvalue > 1e-3


def test_sigma_grows_with_the_epoch_and_is_not_compounded() -> None:
    sampler = HASB(TRACES, total_epochs=10, sigma=0.8)
    for epoch in range(10):
        for step in (epoch * 7, epoch * 7 + 6):
            assert sampler.sigma_at(step, 70) == pytest.approx(0.8 * (epoch + 1) / 10)
    assert sampler.sigma_at(70, 70) == pytest.approx(0.8)
    kept = HASB(TRACES, total_epochs=1, sigma=0.0)
    assert frequencies(kept, "high", 3, 50) == [0, 50, 0]


def test_thresholds() -> None:
    traces = [1.0, 2.0, 4.0, 1000.0]
    assert threshold_of(traces, "mean") == pytest.approx(251.75)
    assert threshold_of(traces, "log-median") == pytest.approx(math.sqrt(8))
    assert threshold_of([0.0, 0.0, 3.0], "log-median") == 0.0
    assert threshold_of(traces, 7) == 7.0
    assert threshold_of(traces, "smooth") == threshold_of(traces, "log-median")
    with pytest.raises(ConfigError, match="'median'"):
        HASB(TRACES, total_epochs=1, threshold="median")  # pyright: ignore[reportArgumentType]


def test_draws_depend_on_seed_step_and_width_alone() -> None:
    def draw(seed: int, step: int, bits: int) -> bs.Precision:
        return HASB(TRACES, total_epochs=1, seed=seed).sample(step=step, total_steps=99, bits=bits, layers=LAYERS)

    assert draw(1, 5, 4) == draw(1, 5, 4)
    assert len({draw(seed, step, bits) for seed in range(4) for step in range(6) for bits in (4, 3, 2)}) > 5
    many = dict.fromkeys(("owner", "alias"), (8, 4, 2))
    sampler = HASB({"owner": 1.0}, total_epochs=1, aliases={"alias": "owner"})
    for step in range(50):
        widths = dict(sampler.sample(step=step, total_steps=50, bits=8, layers=many).layers)
        assert widths["alias"] == widths["owner"]


@pytest.mark.parametrize("kind", ["mean", "log-median", "smooth"])
def test_no_trace_of_equal_ones_is_below_their_threshold(kind: Any) -> None:
    generator = random.Random(0)
    for trace in [0.1, 0.2, 0.3, 0.0, 1e-300, 1e300, *(generator.lognormvariate(0, 9) for _ in range(300))]:
        for count in (1, 2, 3, 7):
            assert threshold_of([trace] * count, kind) == trace


def test_the_median_is_a_sensitive_layer() -> None:
    generator = random.Random(0)
    for _ in range(300):
        traces = [generator.lognormvariate(0, 9) for _ in range(7)]
        threshold = threshold_of(traces, "log-median")
        assert sum(trace >= threshold for trace in traces) == 4
        low, *_, high = sorted(traces[:2])
        assert threshold_of([low, high], "log-median") == pytest.approx(math.sqrt(low * high))


def test_trains_a_supernet() -> None:
    model = bs.prepare(residual(), bits=(4, 3, 2), example_inputs=images())
    bs.calibrate(model, [images(16)])
    traces = {"conv1": 30.0, "conv2": 12.0, "project": 5.0}
    trainer = bs.JointTrainer(model, "cross_entropy", total_steps=4, sampler=HASB(traces, total_epochs=2))
    used = {w.precision for _ in range(4) for w in trainer.step((images(8), torch.arange(8))).widths.values()}
    assert any(len({bits for _, bits in p.layers}) > 1 for p in used)


@pytest.mark.parametrize("sampler", [HASB({"one": 3.0}, total_epochs=1), UniformSampling(total_epochs=1)])
def test_layers_that_share_a_weight_train_at_one_width(sampler: HASB) -> None:
    layers = [nn.Linear(6, 6) for _ in range(4)]
    layers[2].weight = layers[1].weight
    parts = zip(("first", "one", "two", "last"), layers, strict=True)
    network = nn.Sequential(
        OrderedDict(item for name, layer in parts for item in ((name, layer), (f"{name}r", nn.ReLU())))
    )
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    model = bs.prepare(network, bits=(4, 3, 2), example_inputs=x)
    bs.calibrate(model, [x])
    trainer = bs.JointTrainer(model, lambda m, batch: m(batch).square().mean(), total_steps=6, sampler=sampler)
    used = [dict(w.precision.layers) for _ in range(6) for w in trainer.step(x).widths.values()]
    assert len({widths["one"] for widths in used}) == 3
    assert all(widths["one"] == widths["two"] for widths in used)


def test_a_layer_without_a_trace_of_its_own() -> None:
    layers = dict.fromkeys(("owner", "alias"), (8, 4, 2))
    with pytest.raises(ConfigError, match="'alias'.* in aliases="):
        HASB({"owner": 1.0}, total_epochs=1).sample(step=0, total_steps=1, bits=8, layers=layers)
    sampler = HASB({}, total_epochs=1, aliases={"alias": "owner"})
    pinned = sampler.sample(step=0, total_steps=1, bits=2, layers={**layers, "owner": (8,)})
    assert pinned == bs.Precision.of({}, default=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"total_epochs": 0},
        {"total_epochs": 1, "sigma": 1.1},
        {"total_epochs": 1, "threshold": math.nan},
        {"total_epochs": 1, "threshold": -1},
    ],
)
def test_bad_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        HASB(TRACES, **arguments)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", [math.nan, -1.0, None])
def test_bad_traces(value: float) -> None:
    sampler = HASB({**TRACES, "high": value}, total_epochs=1)
    with pytest.raises(ConfigError, match="'high'"):
        sampler.sample(step=0, total_steps=1, bits=4, layers=LAYERS)
