"""The page and the values of a comparison of runs that were written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import bitswitch as bs
from bitswitch.report import comparison_plots, histograms
from bitswitch.report.compare import Comparison, compare
from bitswitch.report.comparison_plots import plot_comparison
from bitswitch.report.histograms import Histogram, plot_histograms, read_histogram
from bitswitch.report.markdown import write_comparison
from bitswitch.report.runs import read_runs
from bitswitch.report.values import to_json
from tests.report.run_folders import recipe, write_run

SECRET = "/home/somebody/data"
TIMING = {
    "sessions": [
        {
            "seconds": 5.0,
            "processes": 1,
            "machine": "a machine",
            "training": {"float": {"steps": 20, "seconds": 4.0}, "joint": {"steps": 30, "seconds": 12.0}},
        }
    ]
}


def heights(line: Any) -> list[float]:
    return list(line.get_ydata())


def four_runs(root: Path, split: str = "held-out") -> list[Path]:
    """Return two seeds with ALRS and two without, from files with a path."""
    data = {"folder": f"{SECRET}/cifar10", "validation": 50 if split == "validation" else None}
    return [
        write_run(
            root / f"{alrs}-{seed}",
            recipe(seed, data=data, start={"weights": f"{SECRET}/float|5.pt"}, joint={"alrs": alrs}),
            0.9,
            {8: 0.9 + seed / 100, 2: 0.8 + (alrs == "factor") / 50},
            split=split,
            timing=TIMING,
        )
        for alrs in ("off", "factor")
        for seed in (0, 1)
    ]


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return compare(read_runs(four_runs(tmp_path)))


class _Drawn:
    """Stands in for `draw` and keeps the figures."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def __call__(self, path: Path, size: tuple[float, float], function: Any) -> bool:
        figure = Figure(figsize=size)
        drawn = function(figure)
        if drawn:
            self.figures[path.name] = figure
        return drawn


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> _Drawn:
    found = _Drawn()
    monkeypatch.setattr(comparison_plots, "draw", found)
    monkeypatch.setattr(histograms, "draw", found)
    return found


def test_page_shows_tables_plots_and_commands(comparison: Comparison, tmp_path: Path) -> None:
    page = tmp_path / "out" / "my results.md"
    files = write_comparison(comparison, page)
    text = page.read_text("utf-8")
    assert "| alrs off | 0, 1 | 2 + 3 | 90.00 (90.00…90.00) | 90.50 (90.00…91.00) | 80.00 (80.00…80.00) |" in text
    assert "| factor against off | – | 0, 1 | +0.00 (+0.00…+0.00) | +2.00 (+2.00…+2.00) |" in text
    # 20 × 128 / 4; 30 × 128 × 2 / 12; 640 / 640; ten steps of 0.2 and of 0.4 s.
    assert "| alrs off | 0 | 640 | 640 | 1.00 | 2.0 | 4.0 | 5.0 s | 1 | 1 | a |" in text
    assert "(a) a machine." in text
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert linked == [f"my%20results_plots/{file.name}" for file in files[:-1]]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[:-1])
    names = {file.name for file in files}
    assert names == {"accuracy.png", "accuracy_by_epoch.png", "alrs_gradients_1.png", "my results.md"}
    commands = text.partition("```bash\n")[2].splitlines()
    assert commands[:2] == [
        "# off-0",
        "bitswitch train cifar10-resnet20 --data.folder cifar10 --start.weights 'float|5.pt' --start.epochs 2 "
        "--joint.epochs 3 --joint.alrs off",
    ]
    assert commands[7].endswith("--joint.epochs 3 --run.seed 1")


def test_title_of_the_page(comparison: Comparison, tmp_path: Path) -> None:
    for title, words in (("Comparison of runs", {}), ("ALRS", {"title": "ALRS"})):
        write_comparison(comparison, tmp_path / "page.md", **words)
        assert (tmp_path / "page.md").read_text("utf-8").startswith(f"# {title}\n\n4 runs.")


def test_equal_runs_elsewhere_give_equal_bytes_without_paths(tmp_path: Path) -> None:
    pages = []
    for place in ("one", "two/deep"):
        found = compare(read_runs(four_runs(tmp_path / place)))
        files = write_comparison(found, tmp_path / place / "out.md")
        pages.append([file.read_bytes() for file in files] + [json.dumps(to_json(found)).encode()])
    assert pages[0] == pages[1]
    for content in pages[0]:
        assert b"somebody" not in content
        assert str(tmp_path).encode() not in content


def test_tables_have_as_many_cells_in_every_row(comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(comparison, tmp_path / "out.md")
    blocks = re.findall(r"(?:^\|.*\n)+", (tmp_path / "out.md").read_text("utf-8"), re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_values_of_single_seeds(comparison: Comparison) -> None:
    values = to_json(comparison)
    assert [each["label"] for each in values["configurations"]] == ["alrs off", "alrs factor"]
    run = values["configurations"][1]["runs"][1]
    assert (run["name"], run["seed"], run["float_accuracy"]) == ("factor-1", 1, 0.9)
    assert run["accuracy"] == {"8": 0.91, "2": pytest.approx(0.82)}
    assert run["epochs"] == {"float": 2, "joint": 3}
    assert run["cost"]["ratio_per_width"] == pytest.approx(1)
    (effect,) = values["effects"]
    assert (effect["field"], effect["configuration"], effect["against"]) == ("joint.alrs", "alrs factor", "alrs off")
    assert effect["points"]["2"] == {"0": pytest.approx(2), "1": pytest.approx(2)}


def test_curves_have_a_panel_a_width_and_a_thin_line_a_seed(comparison: Comparison, drawn: _Drawn) -> None:
    plots = plot_comparison(comparison, Path("nowhere"))
    assert "Accuracy on held-out images in joint training" in plots
    panels = drawn.figures["accuracy_by_epoch.png"].axes
    assert [axes.get_title(loc="left") or axes.get_title() for axes in panels] == ["8 bits", "2 bits"]
    lines = panels[0].lines
    # Two seeds and their mean of each configuration, and its float network.
    assert len(lines) == 2 * (2 + 1 + 1)
    # 90 and 91 % times 5/8, 6/8, 7/8 and 1.
    assert heights(lines[0]) == pytest.approx([56.25, 67.5, 78.75, 90])
    assert heights(lines[2]) == pytest.approx([56.5625, 67.875, 79.1875, 90.5])
    assert panels[0].get_ylabel() == "held-out accuracy, %"


def test_gradients_without_alrs_are_beside_those_with(comparison: Comparison, drawn: _Drawn) -> None:
    plot_comparison(comparison, Path("nowhere"))
    without, with_alrs = drawn.figures["alrs_gradients_1.png"].axes
    # Of 2 bits: 8 / 2 / (epoch + 1), and that times 2^(2 - 8).
    assert heights(without.lines[2]) == pytest.approx([2, 4 / 3, 1])
    assert heights(with_alrs.lines[2]) == pytest.approx([2 / 64, 4 / 192, 1 / 64])


def test_images_of_the_curves_are_named(tmp_path: Path, drawn: _Drawn) -> None:
    kept = four_runs(tmp_path / "kept", "validation")
    plots = plot_comparison(compare(read_runs(kept)), Path("nowhere"))
    assert "Accuracy on validation images in joint training" in plots
    both = [*kept[:1], *four_runs(tmp_path / "held")[:1]]
    plots = plot_comparison(compare(read_runs(both)), Path("nowhere"))
    assert "Accuracy on validation or held-out images in joint training" in plots
    (legend,) = drawn.figures["accuracy_by_epoch.png"].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "data.validation 50 (validation images)",
        "data.validation none (held-out images)",
    ]


def test_a_single_run_is_a_comparison_too(tmp_path: Path) -> None:
    found = compare(read_runs(four_runs(tmp_path)[:1]))
    write_comparison(found, tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text("utf-8")
    assert "\n1 run. In common: cifar10-resnet20, start.weights float|5.pt, start.epochs 2, joint.epochs 3" in text
    assert "| cifar10-resnet20 | 0 | 2 + 3 | 90.00 | 90.00 | 80.00 |" in text


@pytest.mark.parametrize("midrise", [(), (2,)])
def test_histograms_are_shares_of_the_codes(tmp_path: Path, drawn: _Drawn, midrise: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
        x = torch.randn(8, 6)
    model = bs.prepare(net, (4, 2), example_inputs=x, midrise=midrise)
    bs.calibrate(model, [x])
    bs.save(model, tmp_path / "checkpoint")
    found = read_histogram(tmp_path / "checkpoint")
    layer: Any = model.get_submodule("1")
    for bits in (4, 2):
        own = layer.weight_codes(bits).flatten().tolist()
        shares = [100 * own.count(code) / 36 for code in range(-(2 ** (bits - 1)), 2 ** (bits - 1))]
        assert found.shares[bits] == pytest.approx(shares)
    none, two = Histogram({}), Histogram({2: found.shares[2]}, found.midrise)
    assert plot_histograms([("one", found), ("none", none), ("two", two)], Path("h.png"))
    panels = [axes for axes in drawn.figures["h.png"].axes if axes.axison]
    of_two = "code (level: code + ½)" if midrise else "code"
    assert [axes.get_xlabel() for axes in panels] == ["code", of_two, of_two]
    assert read_histogram(tmp_path / "nothing") == none
    assert not plot_histograms([("none", none)], tmp_path / "h.png")
