"""Plots of a run, in one style: a colour a width, the float network black and dashed."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bitswitch._files import write_file
from bitswitch.training.run_metrics import EVALUATED, FLOAT_BITS, MetricsRow

DPI = 144
FLOAT_COLOR = "#222222"
COLORS: dict[int, str] = {
    8: "#1d4e89",
    7: "#5c80bc",
    6: "#1b998b",
    5: "#7fb069",
    4: "#e8a33d",
    3: "#e76f51",
    2: "#c5283d",
}
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class PlotData:
    """What plots show.

    Attributes:
        rows: the rows of metrics.csv.
        float_accuracy: of the float network, 0…1.
        accuracy: of the stored network by width, 0…1.
    """

    rows: Sequence[MetricsRow]
    float_accuracy: float
    accuracy: Mapping[int, float]

    @property
    def widths(self) -> list[int]:
        """The widths, highest first."""
        return sorted(self.accuracy, reverse=True)

    @property
    def split(self) -> str:
        """The images that were evaluated on after epochs."""
        return next((row.split for row in self.rows if row.is_evaluation), "held-out")

    @property
    def float_watched(self) -> float:
        """Accuracy of the float network on the same images, 0…1."""
        found = [row.accuracy for row in self.rows if row.is_evaluation and row.bits == FLOAT_BITS]
        return self.float_accuracy if self.split == "held-out" or not found or found[-1] is None else found[-1]

    def series(self, split: str, bits: int, column: str) -> tuple[list[float], list[float]]:
        """Return (epochs, values) of a column in joint training, where there are values."""
        rows = [r for r in self.rows if (r.phase, r.split, r.bits) == ("joint", split, bits)]
        kept = [r for r in rows if getattr(r, column) is not None]
        return [self._epochs(r) for r in kept], [getattr(r, column) for r in kept]

    def _epochs(self, row: MetricsRow) -> float:
        end = self._first_end
        return float(row.epoch) if row.is_evaluation or end is None else row.step * end.epoch / end.step

    @cached_property
    def _first_end(self) -> MetricsRow | None:
        """The first evaluation after an epoch of joint training."""
        return next((r for r in self.rows if r.phase == "joint" and r.is_evaluation and r.epoch > 0), None)


def plot_all(data: PlotData, folder: Path) -> dict[str, Path]:
    """Draw every plot that there is data for.

    Returns:
        Title and file of each.
    """
    plots: dict[str, tuple[str, tuple[float, float], Callable[[Figure, PlotData], bool]]] = {
        "Accuracy by width": ("accuracy_by_width.png", (6.4, 3.9), _accuracy),
        "Learning curves": ("learning_curves.png", (10.5, 4.0), _curves),
        "Gradients of the weight scales": ("scale_gradients.png", (10.5, 4.0), _gradients),
    }
    written: dict[str, Path] = {}
    for title, (name, size, function) in plots.items():
        if draw(folder / name, size, lambda figure, function=function: function(figure, data)):
            written[title] = folder / name
    return written


def draw(path: Path, size: tuple[float, float], function: Callable[[Figure], bool]) -> bool:
    """Draw a figure in the style of all plots and write it as PNG, unless the function says that it is empty.

    Args:
        path: of the file, which appears complete or not at all.
        size: width and height in inches.
        function: draws; returns whether there is anything to show.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        if not function(figure):
            return False
        image = io.BytesIO()
        # The version of matplotlib would otherwise be part of the file.
        figure.savefig(image, format="png", metadata={"Software": None})
    write_file(path, image.getvalue())
    return True


def label(bits: int) -> str:
    """Return what a legend calls a width."""
    return "float" if bits == FLOAT_BITS else f"{bits} bits"


def _accuracy(figure: Figure, data: PlotData) -> bool:
    axes = figure.subplots()
    widths = data.widths
    values = [100 * data.accuracy[bits] for bits in widths]
    reference = 100 * data.float_accuracy
    axes.axhline(reference, color=FLOAT_COLOR, linestyle=(0, (5, 3)), linewidth=1.3, zorder=1)
    axes.plot(range(len(widths)), values, color="#bbbbbb", linewidth=1.4, zorder=2)
    for x, (bits, value) in enumerate(zip(widths, values, strict=True)):
        axes.scatter(x, value, s=95, color=COLORS[bits], edgecolor="white", linewidth=1.2, zorder=3)
        below = value <= reference
        axes.annotate(
            f"{value:.2f}",
            (x, value),
            xytext=(0, -11 if below else 11),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=9.5,
            fontweight="bold",
            color=COLORS[bits],
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            zorder=4,
        )
    right = len(widths) - 0.42
    axes.text(right, reference, f" float\n {reference:.2f}", va="center", ha="left", fontsize=9.5, color=FLOAT_COLOR)
    low, high = min([*values, reference]), max([*values, reference])
    margin = max(0.3 * (high - low), 0.5)
    axes.set_ylim(low - margin, high + margin)
    # The room for labels may reach above 100 %, the scale does not.
    axes.set_yticks([tick for tick in axes.get_yticks() if low - margin <= tick <= min(high + margin, 100)])
    axes.set_xlim(-0.5, right)
    axes.set_xticks(range(len(widths)), [f"{bits} bits" for bits in widths])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("held-out accuracy, %")
    axes.set_title("One stored network at every width")
    return bool(widths)


def _curves(figure: Figure, data: PlotData) -> bool:
    left, right = figure.subplots(1, 2)
    drawn = [_lines(left, data, "train", "loss", log=True), _lines(right, data, data.split, "accuracy", scale=100)]
    reference = 100 * data.float_watched
    right.axhline(reference, color=FLOAT_COLOR, linestyle=(0, (5, 3)), linewidth=1.2, label="float")
    _zoom(right, data)
    left.set_ylabel("cross-entropy")
    left.set_title("Training loss")
    right.set_ylabel(f"{data.split} accuracy, %")
    right.set_title(f"{data.split.capitalize()} accuracy")
    _legend(figure, right)
    return any(drawn)


def _gradients(figure: Figure, data: PlotData) -> bool:
    left, right = figure.subplots(1, 2, sharey=True)
    drawn = [
        _lines(left, data, "train", "scale_gradient", log=True),
        _lines(right, data, "train", "scaled_gradient", log=True),
    ]
    left.set_ylabel(r"mean over layers of max $|\nabla s|$")
    left.set_title(r"Before ALRS: $|\nabla s|$")
    right.set_title(r"After ALRS: $|\nabla s|\cdot\lambda_b/\lambda$")
    right.tick_params(labelleft=True)
    _legend(figure, left)
    return any(drawn)


def _lines(axes: Axes, data: PlotData, split: str, column: str, *, scale: float = 1, log: bool = False) -> bool:
    """Draw a column for every width; a log axis leaves out what is not positive."""
    drawn = False
    for bits in data.widths:
        epochs, values = data.series(split, bits, column)
        points = [(x, scale * y) for x, y in zip(epochs, values, strict=True) if y > 0 or not log]
        if points:
            few = len(points) <= 40 and split in EVALUATED
            axes.plot(
                *zip(*points, strict=True), color=COLORS[bits], label=label(bits), marker="o" if few else "", ms=3.5
            )
            drawn = True
    if log and drawn:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(power))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)
    return drawn


def power(value: float, _position: int) -> str:
    """Return a tick of a logarithmic axis."""
    return f"{value:g}" if 1e-3 <= value <= 1e3 else f"$10^{{{math.log10(value):.0f}}}$"


def _zoom(axes: Axes, data: PlotData) -> None:
    """Show the part of the curves after the first epoch in full; what lies below, before training, may be cut."""
    later = [
        100 * row.accuracy
        for row in data.rows
        if row.phase == "joint" and row.is_evaluation and row.epoch > 0 and row.accuracy is not None
    ]
    values = [*later, 100 * data.float_watched]
    margin = max(0.08 * (max(values) - min(values)), 0.3)
    axes.set_ylim(min(values) - margin, min(max(values) + margin, 100.5))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    handles = [
        Line2D([], [], color=h.get_color(), linestyle=h.get_linestyle()) for h in handles if isinstance(h, Line2D)
    ]
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
