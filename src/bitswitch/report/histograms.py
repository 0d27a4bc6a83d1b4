"""How often each integer code of the weights occurs at every width, from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitswitch.checkpoint.counts import count_codes, sum_counts
from bitswitch.checkpoint.info import read_info
from bitswitch.report.plots import COLORS, draw

# Above this many bars they touch.
_FEW = 16


@dataclass(frozen=True)
class Histogram:
    """How often each code occurs.

    Attributes:
        shares: of the codes -2^(b-1), …, 2^(b-1) - 1 in per cent, by width b.
        midrise: the widths at which code c stands for c + ½ steps.
    """

    shares: Mapping[int, Sequence[float]]
    midrise: Collection[int] = ()


def read_histogram(checkpoint: Path) -> Histogram:
    """Return the histogram over all layers with bit planes.

    It is empty if there is no checkpoint, or none that can be opened at any width, or if no
    layer has bit planes.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    if not checkpoint.is_dir():
        return Histogram({})
    info = read_info(checkpoint)
    if not info.bits_available:
        return Histogram({})
    total = sum_counts(list(count_codes(info).values()))
    shares = {
        bits: [100 * count / int(total[bits].sum()) for count in total[bits].tolist()]
        for bits in info.bits_available
        if bits in total
    }
    return Histogram(shares, info.config.options.midrise)


def plot_histograms(rows: Sequence[tuple[str, Histogram]], path: Path) -> bool:
    """Draw a row of small multiples for every histogram: a panel a width.

    Args:
        rows: what each histogram is called ("" for no name), and the histogram.
        path: of the PNG file.

    Returns:
        Whether there was anything to draw.
    """
    rows = [(name, histogram) for name, histogram in rows if histogram.shares]
    widths = sorted({bits for _, histogram in rows for bits in histogram.shares}, reverse=True)
    if not widths:
        return False
    size = (max(2.6 * len(widths), 5.2) + 0.3, 2.7 * len(rows))
    return draw(path, size, lambda figure: _draw(figure, rows, widths))


def _draw(figure: Figure, rows: Sequence[tuple[str, Histogram]], widths: Sequence[int]) -> bool:
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (name, histogram) in zip(parts, rows, strict=True):
        if name:
            part.suptitle(name, x=0.01, ha="left", fontsize=9.5, color="#333333")
        panels = part.subplots(1, len(widths), squeeze=False)[0]
        for axes, bits in zip(panels, widths, strict=True):
            if bits in histogram.shares:
                _panel(axes, histogram, bits)
            else:
                axes.axis("off")
        shown = [axes for axes, bits in zip(panels, widths, strict=True) if bits in histogram.shares]
        shown[0].set_ylabel("weights, %")
    return True


def _panel(axes: Axes, histogram: Histogram, bits: int) -> None:
    shares = histogram.shares[bits]
    first = -(2 ** (bits - 1))
    codes = range(first, first + len(shares))
    axes.bar(codes, shares, width=0.86 if len(shares) <= _FEW else 1.0, color=COLORS[bits], linewidth=0)
    axes.set_xlim(first - 0.7, -first - 0.3)
    axes.set_xticks(codes if len(shares) <= _FEW // 2 else [first, first // 2, 0, -first // 2, -first - 1])
    axes.set_xlabel("code (level: code + ½)" if bits in histogram.midrise else "code")
    axes.grid(axis="x", visible=False)
    axes.set_title(f"{bits} bits")
