"""Finished run folders, read for a comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

from bitswitch.errors import BitswitchError, ConfigError
from bitswitch.recipes.config import Recipe
from bitswitch.recipes.convert import from_json
from bitswitch.recipes.results import Results
from bitswitch.recipes.stored import config_of_run
from bitswitch.report.plots import PlotData
from bitswitch.training.run import CONFIG_NAME, METRICS_NAME, TIMING_NAME, read_json
from bitswitch.training.run_metrics import MetricsRow, read_metrics


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        recipe: what was run; fields that are newer than the run have their defaults.
        processes: that shared the work.
        results: the final figures, of the held-out images.
        rows: of metrics.csv.
        sessions: of timing.json; what a field holds depends on the version that wrote it.
    """

    folder: Path
    recipe: Recipe
    processes: int
    results: Results
    rows: Sequence[MetricsRow]
    sessions: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.recipe.run.seed

    @property
    def widths(self) -> list[int]:
        """The widths, highest first."""
        return sorted(self.results.accuracy, reverse=True)

    @cached_property
    def curves(self) -> PlotData:
        """What its curves show."""
        return PlotData(self.rows, self.results.float_accuracy, self.results.accuracy)

    def validation(self, bits: int) -> float | None:
        """Return the accuracy at a width on validation images after joint training, or None without such images."""
        found = [row for row in self.rows if (row.phase, row.split, row.bits) == ("joint", "validation", bits)]
        return max(found, key=lambda row: row.step).accuracy if found else None

    def epochs(self, phase: str) -> int:
        """Return how many epochs a phase had; 0 if it was not trained."""
        return max((row.epoch for row in self.rows if row.phase == phase), default=0)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read finished runs.

    Raises:
        ConfigError: a folder is given twice, is not a run folder, or its run is not finished; the message names it.
        CheckpointError: a file of it is damaged.
    """
    seen: dict[str, Path] = {}
    for folder in folders:
        real = os.path.realpath(folder)
        if real in seen:
            other = "" if seen[real] == folder else f", as {seen[real]} too"
            raise ConfigError(f"{folder} is given twice{other}")
        seen[real] = folder
    return [read_run(folder) for folder in folders]


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        ConfigError: it is not a run folder, or the run is not finished.
        CheckpointError: a file of it is damaged.
    """
    config = config_of_run(folder) if folder.is_dir() else None
    if config is None:
        raise ConfigError(f"{folder} is not a run folder: it has no {CONFIG_NAME} with a recipe")
    results = Results.read(folder)
    if results is None:
        raise ConfigError(f"{folder} is not finished; go on with: bitswitch train --resume {quote(str(folder))}")
    try:
        recipe = from_json(Recipe, config["recipe"], "recipe")
    except BitswitchError as error:
        raise ConfigError(f"{folder / CONFIG_NAME}: {error}") from None
    timing = read_json(folder / TIMING_NAME)
    sessions = timing.get("sessions") if isinstance(timing, dict) else None
    return Run(
        folder,
        recipe,
        config.get("processes", 1),
        results,
        read_metrics(folder / METRICS_NAME),
        [session for session in sessions if isinstance(session, dict)] if isinstance(sessions, list) else [],
    )
