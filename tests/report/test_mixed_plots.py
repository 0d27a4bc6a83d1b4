"""Plots of mixed precision, drawn from values that were made up; and the frontier as rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import bitswitch as bs
from bitswitch.mixed import Measurements, SearchSpace, Sensitivity, Trace, explore, measure_costs, perturbation
from bitswitch.precision import Precision
from bitswitch.report import mixed_plots
from bitswitch.report.frontier import FrontierData
from bitswitch.report.mixed_plots import plot_frontier, plot_sensitivity, plot_widths


@pytest.fixture(scope="module")
def data() -> FrontierData:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(*(layer for _ in range(9) for layer in (nn.Linear(8, 8), nn.ReLU())))
    model = bs.prepare(net, bits=(4, 3, 2), example_inputs=torch.zeros(1, 8))
    names = [e.name for e in bs.summary(model).table.select("quantized")]
    space = SearchSpace(measure_costs(model, torch.zeros(1, 8)), perturbation(model, dict.fromkeys(names, 1.0)))
    worth = dict(zip(names, (8.0, 1.0, 5.0, 2.0, 0.1, 3.0, 0.5), strict=True))

    def judge(precisions: object) -> list[float]:
        assert isinstance(precisions, list)
        return [0.92 - 0.05 * sum(worth[n] * 4.0**-b for n, b in p.layers) for p in precisions]

    budgets = [{"average_bits": 2 + i / 4} for i in range(1, 8)]
    found = explore(space, Measurements(judge), budgets, num_random=10)
    accuracy = {row.subnet.precision: row.score + 0.002 for row in found.measured}
    return FrontierData(found, accuracy, 5000)


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_sensitivities_of_any_sign_and_number_are_drawn(tmp_path: Path) -> None:
    draw = random.Random(0)
    for count in (1, 20, 150):
        values = [10 ** draw.uniform(-3, 2) for _ in range(count)]
        traces = {f"layer{i}": Trace(v, 0.1 * v, 1000) for i, v in enumerate(values)}
        traces |= {"nothing": Trace(0.1, 0.2, 10), "negative": Trace(-3.0, 0.1, 10)}
        plot_sensitivity(Sensitivity(traces, "gauss-newton", 2, 1024), tmp_path / f"{count}.png")
        assert is_png(tmp_path / f"{count}.png")


def test_widths_of_few_and_of_many_layers(tmp_path: Path) -> None:
    for count in (3, 150):
        layers = [f"block{i}.conv" for i in range(count)]
        rows = [(f"{b}.00 bits", Precision.of(dict.fromkeys(layers, b))) for b in (2, 3, 4, 5, 6, 7, 8)]
        plot_widths(rows, layers, tmp_path / f"{count}.png")
        assert is_png(tmp_path / f"{count}.png")


def test_frontier_shows_every_cost_that_is_known(
    data: FrontierData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    texts: list[str] = []

    def draw(path: Path, size: tuple[float, float], function: object) -> None:
        assert callable(function)
        figure = Figure(figsize=size)
        function(figure)
        shown.extend(axes.get_xlabel() for axes in figure.axes)
        texts.extend(text.get_text() for axes in figure.axes for text in axes.texts)

    plot_frontier(data, tmp_path / "frontier.png")
    assert is_png(tmp_path / "frontier.png")
    monkeypatch.setattr(mixed_plots, "draw", draw)
    plot_frontier(data, tmp_path / "other.png")
    assert shown == ["average width, bits", "weights, B", "BitOPs, k"]
    assert texts == ["all 4", "all 3", "all 2"] * 3


def test_equal_frontiers_have_equal_plots(data: FrontierData, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plot_frontier(data, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_rows_of_a_frontier(data: FrontierData) -> None:
    rows = data.rows()
    assert len(rows) == len(data.exploration.measured)
    first = rows[0]
    assert first["origin"] == "uniform"
    assert first["unseen_accuracy"] == pytest.approx(first["search_accuracy"] + 0.002)
    assert first["unseen_error"] == pytest.approx(
        (first["unseen_accuracy"] * (1 - first["unseen_accuracy"]) / 5000) ** 0.5
    )
    on_frontier = [row["precision"] for row in rows if "average_bits" in row["frontier_of"].split()]
    assert sorted(on_frontier) == sorted(data.to_json()["frontier"]["average_bits"])
    assert {row["origin"] for row in rows} <= {"uniform", "programme", "refined", "fitted", "random", "neighbour"}
