"""Plots of mixed precision: sensitivity of the layers, frontiers, and the widths of chosen SubNets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bitswitch.mixed import Exploration, Measured, Sensitivity, Trace
from bitswitch.precision import Precision
from bitswitch.report.frontier import FrontierData
from bitswitch.report.plots import COLORS, draw

_FRONTIER, _PROGRAMME, _RANDOM = "#1d4e89", "#7b3fa0", "#9aa3ad"
# Above this many layers their names and digits would not be readable.
_MOST_NAMES = 120
# Axes; {} is the prefix of the unit.
_COSTS = {
    "average_bits": "average width, bits",
    "weight_bytes": "weights, {}B",
    "bitops": "BitOPs, {}",
    "latency": "latency, {}s",
}
_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3), ("µ", 1e-6))


def plot_sensitivity(sensitivity: Sensitivity, path: Path) -> None:
    """Draw the trace of every layer, and the trace for each of its weights, with their standard errors."""
    rows = len(sensitivity.layers)
    height = 1.3 + rows * (0.21 if rows <= _MOST_NAMES else 0.06)
    draw(path, (9.5, height), lambda figure: _sensitivity(figure, sensitivity))


def _sensitivity(figure: Figure, sensitivity: Sensitivity) -> bool:
    left, right = figure.subplots(1, 2, sharey=True)
    traces = list(sensitivity.layers.values())
    _traces(left, traces)
    _traces(right, [Trace(t.value / t.size, t.error / t.size, t.size) for t in traces])
    kind = "Gauss–Newton matrix" if sensitivity.method == "gauss-newton" else "Hessian"
    left.set_title(f"Trace of the {kind}")
    right.set_title("Trace per weight")
    zero = "; hollow: counts as zero" if any(t.is_zero or t.value <= 0 for t in traces) else ""
    left.set_xlabel(f"{sensitivity.num_examples:,} images, ± one standard error{zero}")
    right.set_xlabel("what the search multiplies the squared error with")
    if len(traces) <= _MOST_NAMES:
        left.set_yticks(range(len(traces)), list(sensitivity.layers), fontsize=8.5)
    else:
        left.set_ylabel("layer")
        left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y + 1:.0f}"))
    left.set_ylim(len(traces) - 0.4, -0.6)
    return bool(traces)


def _traces(axes: Axes, traces: Sequence[Trace]) -> None:
    """Draw traces on a logarithmic axis; those that count as zero stand hollow at its left end."""
    positive = [t.value for t in traces if not t.is_zero and t.value > 0]
    least = min(positive, default=1.0)
    end = 10 ** math.floor(math.log10(least) - 0.15)
    for y, trace in enumerate(traces):
        if trace.is_zero or trace.value <= 0:
            axes.plot(end, y, "o", ms=5.5, mfc="white", mec=_RANDOM, clip_on=False, zorder=3)
            continue
        low = min(trace.error, trace.value - end)
        axes.errorbar(
            trace.value,
            y,
            xerr=[[max(low, 0)], [trace.error]],
            fmt="o",
            ms=5,
            color=_FRONTIER,
            elinewidth=1.4,
            capsize=2,
        )
    axes.set_xscale("log")
    axes.set_xlim(end, max(positive, default=1.0) * 2)
    axes.grid(axis="y", color="#f0f0f0")


def plot_frontier(data: FrontierData, path: Path) -> None:
    """Draw accuracy on unseen images against every cost that is known."""
    shown = [cost for cost in _COSTS if cost in data.exploration.costs]
    draw(path, (4.6 * len(shown) + 0.6, 4.6), lambda figure: _frontier(figure, data, shown))


def _frontier(figure: Figure, data: FrontierData, costs: Sequence[str]) -> bool:
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        _panel(axes, data, cost)
    _limits(panels[0], data)
    panels[0].set_ylabel("accuracy on unseen images, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return True


def _panel(axes: Axes, data: FrontierData, cost: str) -> None:
    found = data.exploration
    name, unit = _unit(found, cost)

    def points(rows: Sequence[Measured]) -> tuple[list[float], list[float]]:
        return [getattr(row.subnet.cost, cost) / unit for row in rows], [data.percent(row) for row in rows]

    if found.random:
        axes.plot(
            *points(found.random), "o", ms=3.5, color=_RANDOM, alpha=0.35, mew=0, label="random SubNets", zorder=1
        )
    frontier = found.frontier(cost)
    axes.errorbar(
        *points(frontier),
        yerr=[data.error(row) for row in frontier],
        fmt="o-",
        ms=4.5,
        lw=1.5,
        color=_FRONTIER,
        ecolor="#8ea6c4",
        elinewidth=1,
        label="frontier of the search, ± one standard error",
        zorder=3,
    )
    optima = list({part.optimum.subnet.precision: part.optimum for part in found.within}.values())
    axes.plot(
        *points(optima), "D", ms=4.5, mfc="none", mec=_PROGRAMME, mew=1.2, label="integer programme alone", zorder=4
    )
    _uniform(axes, data, cost, unit)
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(x=0.12)


def _uniform(axes: Axes, data: FrontierData, cost: str, unit: float) -> None:
    for row in data.exploration.uniform:
        # The width of the layers with a choice, which is their average.
        bits = round(row.subnet.cost.average_bits)
        x, y = getattr(row.subnet.cost, cost) / unit, data.percent(row)
        axes.plot(x, y, "s", ms=9, color=COLORS[bits], mec="white", mew=1.2, zorder=5)
        axes.annotate(
            f"all {bits}",
            (x, y),
            # A frontier comes from below on the left and goes up.
            xytext=(-5, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
            fontweight="bold",
            color=COLORS[bits],
            zorder=6,
        )


def _limits(axes: Axes, data: FrontierData) -> None:
    """Show the frontier and the uniform widths in full; random SubNets far below may be cut."""
    found = data.exploration
    rows = [*found.uniform, *(row for cost in found.costs for row in found.frontier(cost))]
    low = min(data.percent(row) - data.error(row) for row in rows)
    high = max(data.percent(row) + data.error(row) for row in rows)
    margin = max(high - low, 0.5)
    axes.set_ylim(low - 0.08 * margin, high + 0.04 * margin)


def _unit(found: Exploration, cost: str) -> tuple[str, float]:
    """Return (label of the axis, what one unit of it stands for)."""
    if cost == "average_bits":
        return _COSTS[cost], 1.0
    largest = max(getattr(row.subnet.cost, cost) for row in found.measured)
    prefix, unit = next((item for item in _PREFIXES if largest >= item[1]), _PREFIXES[-1])
    return _COSTS[cost].format(prefix).rstrip(", "), unit


def plot_widths(rows: Sequence[tuple[str, Precision]], layers: Sequence[str], path: Path) -> None:
    """Draw the width of every layer of some SubNets: a line a SubNet, a column a layer.

    Args:
        rows: what each SubNet is called, and its precision, which names every layer.
        layers: in the order of the columns.
        path: of the PNG file.
    """
    names = len(layers) <= _MOST_NAMES
    cell = 0.3 if names else 0.1
    below = 0.085 * max(map(len, layers), default=0) if names else 0.4
    size = (2.4 + cell * len(layers), (0.6 if names else 0.9) + below + 0.3 * len(rows))
    draw(path, size, lambda figure: _widths(figure, rows, layers, digits=names))


def _widths(figure: Figure, rows: Sequence[tuple[str, Precision]], layers: Sequence[str], digits: bool) -> bool:
    axes = figure.subplots()
    edge = 1.2 if digits else 0.3
    for y, (_, precision) in enumerate(rows):
        widths = dict(precision.layers)
        for x, name in enumerate(layers):
            color = COLORS[widths[name]]
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=edge))
            if digits:
                ink = "white" if sum(to_rgb(color)) < 1.6 else "#222222"
                axes.text(x, y, str(widths[name]), ha="center", va="center", fontsize=8.5, color=ink)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=9)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    if digits:
        axes.set_xticks(range(len(layers)), list(layers), rotation=90, fontsize=8.5)
    else:
        axes.set_xlabel("layer")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x + 1:.0f}"))
        used = sorted({bits for _, precision in rows for _, bits in precision.layers}, reverse=True)
        handles = [Patch(color=COLORS[bits], label=f"{bits} bits") for bits in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(used), fontsize=9)
    axes.set_title("Width of every layer")
    return bool(rows)
