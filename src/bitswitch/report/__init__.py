"""Plots and a self-contained page about a finished run."""

from __future__ import annotations

import os
from pathlib import Path

from bitswitch._files import write_file
from bitswitch.errors import CheckpointError
from bitswitch.recipes.results import Results
from bitswitch.recipes.stored import CHECKPOINT_FOLDER, config_of_run
from bitswitch.report.histograms import plot_histograms, read_histogram
from bitswitch.report.page import config_table, render, table
from bitswitch.report.plots import COLORS, FLOAT_COLOR, PlotData, plot_all
from bitswitch.report.tables import ACCURACY_HEADER, accuracy_rows
from bitswitch.training.run import METRICS_NAME
from bitswitch.training.run_metrics import read_metrics

REPORT_NAME = "report.html"
PLOTS_FOLDER = "plots"

__all__ = ["PLOTS_FOLDER", "REPORT_NAME", "write_report"]


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write `plots/*.png` and `report.html` of a finished run.

    Everything comes from config.json, metrics.csv, results.json and the checkpoint, so equal runs have equal reports.

    Args:
        folder: the run folder.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: the run is not finished, or one of the files is damaged.
    """
    folder = Path(folder)
    config, results = config_of_run(folder), Results.read(folder)
    if config is None or results is None:
        raise CheckpointError(f"{folder} is not the folder of a finished run")
    data = PlotData(read_metrics(folder / METRICS_NAME), results.float_accuracy, results.accuracy)
    plots = plot_all(data, folder / PLOTS_FOLDER)
    histograms = folder / PLOTS_FOLDER / "code_histograms.png"
    if plot_histograms([("", read_histogram(folder / CHECKPOINT_FOLDER))], histograms):
        plots["Integer codes of the weights"] = histograms
    rows = accuracy_rows(results.accuracy, results.float_accuracy, results.bytes_at, results.float_bytes)
    colors = [FLOAT_COLOR, *(COLORS[bits] for bits in data.widths)]
    recipe = config["recipe"]
    page = render(
        title=f"{recipe['name']}: {', '.join(map(str, data.widths))} bits",
        intro="One network, trained jointly and stored once as integers. A lower width reads fewer bit planes of it.",
        tables={"Accuracy and size by width": table(ACCURACY_HEADER, rows, colors)},
        plots=plots,
        config=config_table({"processes": config.get("processes", 1), **recipe}),
    )
    path = folder / REPORT_NAME
    write_file(path, page.encode())
    return path
