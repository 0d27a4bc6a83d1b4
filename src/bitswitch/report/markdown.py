"""A comparison as a Markdown page with plots beside it, the same bytes for the same runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from bitswitch._files import write_file
from bitswitch.report.compare import Comparison
from bitswitch.report.comparison import (
    Section,
    accuracy_sections,
    common_text,
    configuration_sections,
    cost_sections,
    effect_sections,
)
from bitswitch.report.comparison_plots import plot_comparison
from bitswitch.report.settings import command

TITLE = "Comparison of runs"
ACCURACY_PLOTS = ("accuracy.png", "accuracy_by_epoch.png")


def plots_folder(page: Path) -> Path:
    """Return the folder of the plots of a page: `results_plots` for `results.md`."""
    return page.with_name(f"{page.stem}_plots")


def write_comparison(comparison: Comparison, page: Path, title: str = TITLE) -> list[Path]:
    """Write the page and its plots.

    Args:
        comparison: what it is about.
        page: Markdown file; the plots go into a folder beside it.
        title: heading of the page.

    Returns:
        The files, the page last.
    """
    plots = plot_comparison(comparison, plots_folder(page))
    write_file(page, render(comparison, plots, page.parent, title).encode())
    return [*plots.values(), page]


def render(comparison: Comparison, plots: Mapping[str, Path], folder: Path, title: str = TITLE) -> str:
    """Return the page.

    Args:
        comparison: what it is about.
        plots: title and file of each plot.
        folder: of the page; plots are linked from there.
        title: heading of the page.
    """
    return "\n".join([f"# {title}", *_lines(comparison, plots, folder)]) + "\n"


def _lines(comparison: Comparison, plots: Mapping[str, Path], folder: Path) -> Iterator[str]:
    number = len(comparison.runs)
    yield ""
    yield f"{number} run{'s' if number > 1 else ''}. In common: {common_text(comparison)}."
    yield ""
    yield "Written by `bitswitch report` from the run folders; changes by hand are lost when it is written again."
    for section in [*configuration_sections(comparison), *accuracy_sections(comparison)]:
        yield from _section(section)
    yield from _plots({title: path for title, path in plots.items() if path.name in ACCURACY_PLOTS}, folder)
    for section in effect_sections(comparison):
        yield from _section(section)
    yield from _plots({title: path for title, path in plots.items() if path.name not in ACCURACY_PLOTS}, folder)
    for section in cost_sections(comparison):
        yield from _section(section)
    yield from _commands(comparison)


def _section(section: Section) -> Iterator[str]:
    yield from ("", f"## {section.title}")
    if section.rows:
        yield ""
        yield _row(section.header)
        yield _row(["---" if index in section.left else "---:" for index in range(len(section.header))])
        yield from (_row(row) for row in section.rows)
    if section.note:
        yield from ("", section.note)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plots(plots: Mapping[str, Path], folder: Path) -> Iterator[str]:
    for title, path in plots.items():
        yield from ("", f"## {title}", "", f"![{title}]({quote(path.relative_to(folder).as_posix())})")


def _commands(comparison: Comparison) -> Iterator[str]:
    yield from ("", "## Commands", "", "Of files and folders only the last component is shown.", "", "```bash")
    for configuration in comparison.configurations:
        for run in configuration.runs:
            line = command(run.recipe, run.processes)
            yield f"# {run.name}"
            yield line or f"# the catalogue has no recipe {run.recipe.name!r}; see the run's config.json"
    yield "```"
