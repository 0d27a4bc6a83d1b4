"""Plots of a comparison: a colour a configuration, a thin line a seed, a panel a width."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bitswitch.recipes.stored import CHECKPOINT_FOLDER
from bitswitch.report.compare import Comparison, Configuration, Effect
from bitswitch.report.histograms import plot_histograms, read_histogram
from bitswitch.report.plots import COLORS, FLOAT_COLOR, draw, power
from bitswitch.report.runs import Run

_PALETTE = ("#1d4e89", "#c5283d", "#1b998b", "#e8a33d", "#7b3fa0", "#7a5c3e", "#d871b0", "#777777")
_STYLES = ("-", "--", ":", "-.")
_DASHED = (0, (5, 3))
_COLUMNS = 4
# Letters a line of a title beside a plot.
_LABEL = 42
# Letters of the legend's font that an inch has room for.
_LETTERS = 13.0


def plot_comparison(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Draw every plot that there is data for.

    Returns:
        Title and file of each.
    """
    count = len(comparison.widths)
    columns = min(count, _COLUMNS)
    below = 0.22 * math.ceil(len(comparison.configurations) / _per_line(comparison, 2.9 * columns)) + 0.1
    size = (2.9 * columns + 0.4, 2.75 * math.ceil(count / columns) + below)
    plots: list[tuple[str, str, Callable[[Path], bool]]] = [
        (
            "Accuracy at every width",
            "accuracy.png",
            lambda path: draw(path, _final_size(comparison), lambda figure: _final(figure, comparison)),
        ),
        (
            f"Accuracy on {_images(comparison)} images in joint training",
            "accuracy_by_epoch.png",
            lambda path: draw(path, size, lambda figure: _curves(figure, comparison)),
        ),
    ]
    for index, effect in enumerate(comparison.alrs_pairs, start=1):
        where = f", {effect.where}" if effect.where else ""
        title = f"Gradients of the weight scales without and with ALRS ({effect.title}{where})"
        plots.append((title, f"alrs_gradients_{index}.png", _gradient_plot(effect)))
    plots.append(
        (
            "Integer codes of the weights, of the first run of each configuration",
            "code_histograms.png",
            lambda path: plot_histograms(
                [
                    (each.title, read_histogram(each.runs[0].folder / CHECKPOINT_FOLDER))
                    for each in comparison.configurations
                ],
                path,
            ),
        )
    )
    return {title: folder / name for title, name, function in plots if function(folder / name)}


def _gradient_plot(effect: Effect) -> Callable[[Path], bool]:
    return lambda path: draw(path, (10.5, 4.0), lambda figure: _gradients(figure, effect))


def _images(comparison: Comparison) -> str:
    """Return which images the curves are of; runs may differ in it."""
    return " or ".join(dict.fromkeys(run.curves.split for run in comparison.runs))


def _color(index: int) -> str:
    return _PALETTE[index % len(_PALETTE)]


def _line(index: int) -> Any:
    return _STYLES[index // len(_PALETTE) % len(_STYLES)]


def _final(figure: Figure, comparison: Comparison) -> bool:
    """Draw a row a configuration and a panel a width, on an axis of its own: widths differ by more than settings."""
    configurations = comparison.configurations
    panels = figure.subplots(1, len(comparison.widths), sharey=True, squeeze=False)[0]
    for axes, bits in zip(panels, comparison.widths, strict=True):
        for y, configuration in enumerate(configurations):
            spread = configuration.accuracy(bits)
            if spread is None:
                continue
            float_mean = configuration.float_accuracy.mean
            axes.plot([float_mean] * 2, [y - 0.3, y + 0.3], color=FLOAT_COLOR, linewidth=1.6, solid_capstyle="butt")
            axes.plot([spread.low, spread.high], [y, y], color=_color(y), linewidth=1.6, zorder=3)
            axes.plot(spread.mean, y, "o", ms=7, color=_color(y), mec="white", mew=1, zorder=5)
            if len(spread.by_seed) > 1:
                values = list(spread.by_seed.values())
                axes.plot(values, [y + 0.28] * len(values), ".", ms=4.5, color=_color(y), alpha=0.6, mew=0, zorder=4)
        axes.set_title(f"{bits} bits", color=COLORS[bits])
        axes.set_xlabel("held-out accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.1)
        axes.grid(axis="y", visible=False)
    labels = [textwrap.fill(each.title, _LABEL) for each in configurations]
    panels[0].set_yticks(range(len(labels)), labels, fontsize=9)
    panels[0].set_ylim(len(labels) - 0.45, -0.55)
    handles = [
        Line2D([], [], color="#777777", marker="o", ms=6, mec="white", label="mean, least to greatest seed"),
        Line2D([], [], color="#777777", marker=".", linestyle="none", label="seeds"),
        Line2D(
            [], [], color=FLOAT_COLOR, marker="|", ms=11, mew=1.6, linestyle="none", label="its float network, mean"
        ),
    ]
    several = any(len(each.runs) > 1 for each in configurations)
    figure.legend(handles=handles if several else handles[2:], loc="outside lower center", ncols=3, fontsize=9)
    return True


def _final_size(comparison: Comparison) -> tuple[float, float]:
    lines = [len(textwrap.wrap(each.title, _LABEL)) for each in comparison.configurations]
    widest = max(min(len(each.title), _LABEL) for each in comparison.configurations)
    return 2.1 * len(comparison.widths) + widest / _LETTERS + 0.3, 1.35 + sum(max(0.42, 0.17 * n + 0.12) for n in lines)


def _curves(figure: Figure, comparison: Comparison) -> bool:
    widths = comparison.widths
    columns = min(len(widths), _COLUMNS)
    panels = figure.subplots(math.ceil(len(widths) / columns), columns, squeeze=False)
    drawn = False
    for axes, bits in zip(panels.flat, widths, strict=False):
        axes.set_title(f"{bits} bits", color=COLORS[bits])
        seen: list[float] = []
        for index, configuration in enumerate(comparison.configurations):
            seen += _watched(axes, configuration, bits, index, comparison)
        drawn = drawn or bool(seen)
        if seen:
            margin = max(0.07 * (max(seen) - min(seen)), 0.2)
            axes.set_ylim(min(seen) - margin, min(max(seen) + margin, 100.5))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("epoch")
    for axes in panels.flat[len(widths) :]:
        axes.axis("off")
    splits = [dict.fromkeys(run.curves.split for run in each.runs) for each in comparison.configurations]
    mixed = len({split for own in splits for split in own}) > 1
    labels = [
        f"{each.title} ({' and '.join(own)} images)" if mixed else each.title
        for each, own in zip(comparison.configurations, splits, strict=True)
    ]
    panels[0][0].set_ylabel("accuracy, %" if mixed else f"{_images(comparison)} accuracy, %")
    handles = [Line2D([], [], label=t, color=_color(i), linestyle=_line(i)) for i, t in enumerate(labels)]
    columns = _per_line(comparison, figure.get_size_inches()[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9)
    return drawn


def _watched(axes: Axes, configuration: Configuration, bits: int, index: int, comparison: Comparison) -> list[float]:
    """Draw the curves of a configuration at a width; return what has to be visible."""
    if bits not in configuration.widths:
        return []
    color = _color(index)
    curves = [_points(run, bits) for run in configuration.runs]
    several = len(curves) > 1
    for curve in curves if several else ():
        axes.plot(list(curve), list(curve.values()), color=color, linewidth=0.8, alpha=0.45)
    common = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    if not common:
        return []
    means = [sum(curve[epoch] for curve in curves) / len(curves) for epoch in common]
    few = "o" if len(common) <= 12 else ""
    axes.plot(common, means, linewidth=1.9, marker=few, ms=3.5, color=color, linestyle=_line(index))
    floats = [100 * run.curves.float_watched for run in configuration.runs]
    everywhere = [100 * run.curves.float_watched for run in comparison.runs]
    alike = max(everywhere) - min(everywhere) < 1e-9
    reference = sum(floats) / len(floats)
    axes.axhline(reference, color=FLOAT_COLOR if alike else color, linestyle=_DASHED, linewidth=0.9, zorder=1)
    # What lies below, before training, may be cut.
    return [reference, *(value for curve in curves for epoch, value in curve.items() if epoch > 0 or len(curve) == 1)]


def _points(run: Run, bits: int) -> dict[float, float]:
    epochs, values = run.curves.series(run.curves.split, bits, "accuracy")
    return {epoch: 100 * value for epoch, value in zip(epochs, values, strict=True)}


def _gradients(figure: Figure, effect: Effect) -> bool:
    """Draw the gradients that reach the scales, without and with ALRS, as in Figure 3 of the paper."""
    panels = figure.subplots(1, 2, sharey=True)
    drawn = False
    for axes, side in zip(panels, (effect.base, effect.other), strict=True):
        for bits in side.widths:
            for number, run in enumerate(side.runs):
                epochs, values = run.curves.series("train", bits, "scaled_gradient")
                points = [(x, y) for x, y in zip(epochs, values, strict=True) if y > 0]
                if points:
                    thin = {"linewidth": 1.6} if number == 0 else {"linewidth": 0.7, "alpha": 0.4}
                    axes.plot(*zip(*points, strict=True), color=COLORS[bits], **thin)
                    drawn = True
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.margins(x=0.02)
    if not drawn:
        return False
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter(FuncFormatter(power))
    panels[0].set_title(r"Without ALRS: $|\nabla s|$")
    panels[1].set_title(r"With ALRS: $|\nabla s|\cdot\lambda_b/\lambda$")
    panels[0].set_ylabel(r"mean over layers of max $|\nabla s|$")
    panels[1].tick_params(labelleft=True)
    widths = sorted({*effect.base.widths, *effect.other.widths}, reverse=True)
    handles = [Line2D([], [], color=COLORS[bits], label=f"{bits} bits") for bits in widths]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return True


def _per_line(comparison: Comparison, width: float) -> int:
    """Return how many labels a line of the legend has room for."""
    longest = max(len(each.title) for each in comparison.configurations) + 6
    return max(1, min(len(comparison.configurations), int(_LETTERS * width / longest)))
