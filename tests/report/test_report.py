"""The report of a run that was written by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bitswitch.errors import CheckpointError
from bitswitch.report import plots, write_report
from bitswitch.report.plots import COLORS, PlotData
from bitswitch.report.tables import accuracy_rows
from bitswitch.training.run import write_json
from bitswitch.training.run_metrics import MetricsFile, MetricsRow

RESULTS = {
    "float_accuracy": 0.75,
    "accuracy": {"8": 0.76, "2": 0.5},
    "bytes_at": {"8": 300, "2": 1200},
    "float_bytes": 4000,
}


def make_run(folder: Path, *, trained: bool = True) -> None:
    folder.mkdir()
    write_json(
        folder / "config.json", {"recipe": {"name": "<toy>", "joint": {"lr": 0.1, "bits": [8, 2]}}, "processes": 1}
    )
    write_json(folder / "results.json", RESULTS)
    metrics = MetricsFile(folder / "metrics.csv")
    metrics.start()
    metrics.write([MetricsRow("joint", "held-out", 0, 0, bits, accuracy=0.1) for bits in (8, 2)])
    for epoch in (1, 2, 3) if trained else ():
        for bits in (8, 2):
            values = {"loss": 1 / epoch, "scale_gradient": 0.1 / bits, "scaled_gradient": 0.0 if bits == 2 else 0.01}
            metrics.write([MetricsRow("joint", "train", epoch, 5 * epoch, bits, lr=0.1, scale_lr=0.05, **values)])
            metrics.write([MetricsRow("joint", "held-out", epoch, 5 * epoch, bits, accuracy=0.2 * epoch)])


def test_page_stands_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"https?://|<script|<link", page)
    assert "&lt;toy&gt;" in page
    assert "<toy>" not in page
    for text in ("76.00", "+1.00", "-25.00", "30.0 %", "1.2 kB", "lr", "0.1"):
        assert text in page


def test_equal_runs_have_equal_reports(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name)
        write_report(tmp_path / name)
    for path in [p for p in (tmp_path / "a").rglob("*") if p.is_file()]:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_no_scale_of_accuracies_reaches_above_100() -> None:
    figure = Figure()
    assert plots._accuracy(figure, PlotData([], 0.72, {8: 0.9872, 4: 0.99, 2: 1.0}))
    ticks = figure.axes[0].get_yticks()
    assert max(ticks) == 100
    assert len(ticks) > 3


def test_runs_without_training_have_fewer_plots(tmp_path: Path) -> None:
    make_run(tmp_path / "run", trained=False)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Accuracy by width" in page
    assert not (tmp_path / "run/plots/scale_gradients.png").exists()


def test_unfinished_runs_have_no_report(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a finished run"):
        write_report(tmp_path)


def test_epochs_of_steps() -> None:
    rows = [
        MetricsRow("joint", "held-out", 2, 10, 8, accuracy=0.5),
        MetricsRow("joint", "train", 1, 3, 8, loss=1.0),
        MetricsRow("float", "train", 1, 3, 8, loss=2.0),
    ]
    assert PlotData(rows, 0.5, {8: 0.5}).series("train", 8, "loss") == ([0.6], [1.0])


def test_every_width_has_a_colour_of_its_own() -> None:
    assert set(COLORS) == set(range(2, 9))
    assert len(set(COLORS.values())) == 7


def test_rows_of_the_table() -> None:
    rows = accuracy_rows({2: 0.5, 8: 0.76}, 0.75, {8: 1200}, 4000)
    assert rows == [
        ("float", "75.00", "", "4 kB", "100 %"),
        ("8 bits", "76.00", "+1.00", "1.2 kB", "30.0 %"),
        ("2 bits", "50.00", "-25.00", "–", "–"),
    ]
