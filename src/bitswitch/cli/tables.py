"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_UNLIMITED = 100_000


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Print an aligned table on standard output.

    Args:
        header: names of the columns.
        rows: cells as text.
        left: indices of the columns that are aligned to the left; the others are numbers.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        text = index in left
        table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # A file or a pipe has no width of its own: lines are as long as the table.
        console.width = _UNLIMITED
        console.width = max(console.measure(table).maximum, 1)
    console.print(table)


def format_count(value: float) -> str:
    """Return a large number with three digits and a prefix.

    >>> format_count(40_560_000)
    '40.6 M'
    """
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.3g}"
