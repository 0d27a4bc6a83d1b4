"""`bitswitch report`: pages about finished runs, and a comparison of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from bitswitch.cli.outputs import check_output_file
from bitswitch.errors import ConfigError

if TYPE_CHECKING:
    from bitswitch.report.compare import Comparison

_ABOUT = (
    "Write the page of every run again, and compare the runs: accuracy by width with its spread over seeds, what "
    "single settings change, what training cost, and the commands."
)


@dataclass(frozen=True)
class ReportOptions:
    """Which runs, and where the comparison goes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs. Those that differ in nothing but the seed are one row."""
    output: Path | None = None
    """Markdown file for the comparison; its plots go into a folder beside it."""
    title: str | None = None
    """Heading of that file."""
    json: Path | None = None
    """File for all values of all seeds."""


def run(arguments: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    options = tyro.cli(ReportOptions, prog="bitswitch report", description=_ABOUT, args=arguments)
    if not options.runs:
        raise ConfigError("give at least one run folder")
    if options.output is not None and options.output.suffix != ".md":
        raise ConfigError(f"--output is a Markdown file, its name ends in .md; got {options.output}")
    if options.title is not None and options.output is None:
        raise ConfigError("--title is the heading of a page; name the page with --output")
    check_output_file("--output", options.output)
    check_output_file("--json", options.json)
    from bitswitch.report import write_report
    from bitswitch.report.compare import compare
    from bitswitch.report.runs import read_runs

    runs = read_runs(options.runs)
    _check_runs_stay(options)
    comparison = compare(runs)
    pages = [write_report(folder) for folder in options.runs]
    written = _write(comparison, options)
    _print(comparison)
    for page in pages:
        print(f"page:       {page}")
    for kind, path in written:
        print(f"{kind:<11} {path}")


def _check_runs_stay(options: ReportOptions) -> None:
    """Find out whether no file of a run would be replaced, and no output by another one.

    Raises:
        ConfigError: one would be.
    """
    outputs = {"--output": options.output, "--json": options.json}
    given = {option: path.resolve() for option, path in outputs.items() if path is not None}
    if len(set(given.values())) < len(given):
        raise ConfigError(f"--output and --json are one file: {options.json}")
    for option, path in given.items():
        if path.parent in {run.resolve() for run in options.runs}:
            raise ConfigError(f"{option} is a file outside of the run folders; got {path}")


def _write(comparison: Comparison, options: ReportOptions) -> list[tuple[str, Path]]:
    from bitswitch.report.markdown import TITLE, plots_folder, write_comparison

    written: list[tuple[str, Path]] = []
    if options.output is not None:
        write_comparison(comparison, options.output, options.title or TITLE)
        written += [("plots:", plots_folder(options.output)), ("comparison:", options.output)]
    if options.json is not None:
        from bitswitch.report.values import to_json
        from bitswitch.training.run import write_json

        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, to_json(comparison))
        written.append(("values:", options.json))
    return written


def _print(comparison: Comparison) -> None:
    from bitswitch.cli.tables import print_table
    from bitswitch.report.comparison import (
        accuracy_sections,
        common_text,
        configuration_sections,
        cost_sections,
        effect_sections,
    )

    print(f"in common: {common_text(comparison)}")
    kinds = (configuration_sections, accuracy_sections, effect_sections, cost_sections)
    for section in (section for kind in kinds for section in kind(comparison)):
        print(f"\n{section.title}")
        if section.rows:
            print_table(section.header, section.rows, section.left)
        print(section.note)
    print()
