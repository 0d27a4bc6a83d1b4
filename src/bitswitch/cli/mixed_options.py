"""Options that the commands for mixed precision share."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bitswitch.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from bitswitch.mixed import Sensitivity
    from bitswitch.recipes.trained import Trained

RESULTS_FOLDER = "mixed"


@dataclass(frozen=True)
class TrainedOptions:
    """A network, and the kind of its images."""

    trained: tyro.conf.Positional[Path]
    """A run folder, or a checkpoint folder."""
    output: Path | None = None
    """Folder of the results; by default `mixed` inside the folder given."""
    data: Literal["digits", "cifar10", "folder"] | None = None
    """The images; by default those of the recipe that the network was trained by."""

    @property
    def results(self) -> Path:
        """The folder of the results."""
        return self.output or self.trained / RESULTS_FOLDER


@dataclass(frozen=True)
class ImageOptions(TrainedOptions):
    """A network that runs on images."""

    data_folder: str | None = None
    """Where they are; by default as in the recipe, or the environment variable BITSWITCH_DATA."""
    device: Literal["auto", "cpu"] = "auto"
    """GPU if there is one, or the CPU."""


@dataclass(frozen=True)
class BudgetOptions:
    """What is minimised, and what must not be exceeded."""

    average_bits: tuple[float, ...] = ()
    """Budgets of the plain average width, over the layers with a choice."""
    weighted_bits: tuple[float, ...] = ()
    """Budgets of the average width weighted by the layers' numbers of weights."""
    weight_bytes: Annotated[tuple[float, ...], tyro.conf.arg(name="bytes")] = ()
    """Budgets of the bytes of all weights, layers in full precision included."""
    bitops: tuple[float, ...] = ()
    """Budgets of multiplications × weight width × input width for one image."""
    latency: tuple[float, ...] = ()
    """Budgets of seconds, summed over the layers from --latency-table."""
    latency_table: Path | None = None
    """JSON file {layer: {width: seconds}}."""
    layer_bits: tuple[str, ...] = ()
    """Widths that layers are limited to, by name or pattern: conv1=8 layer1.*=8,4."""
    sensitivity: Path | None = None
    """File of traces; by default that of `bitswitch sensitivity`, or of the run."""
    objective: Literal["perturbation", "weighted-bits"] = "perturbation"
    """What is minimised: the expected change of the loss, or minus the bits weighted by sensitivity."""

    def budgets(self) -> dict[str, float | list[float]]:
        """Return the budgets given: a number, or a list for as many searches.

        Raises:
            ConfigError: they differ in number, or one is of latency, and there is no table.
        """
        from bitswitch.mixed._budgets import NAMES

        given = {name: list(getattr(self, name)) for name in NAMES if getattr(self, name)}
        lengths = {_option(name): len(values) for name, values in given.items() if len(values) > 1}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{option} has {length}" for option, length in lengths.items())
            raise ConfigError(f"budgets must be equally long, or one number: {shown}")
        if self.latency and self.latency_table is None:
            raise ConfigError("--latency needs --latency-table")
        return {name: values[0] if len(values) == 1 else values for name, values in given.items()}

    def searches(self) -> list[dict[str, float]]:
        """Return the budgets of each search.

        Raises:
            ConfigError: there are none, or they differ in number.
        """
        from bitswitch.mixed._budgets import NAMES
        from bitswitch.mixed.search import side_by_side

        budgets = self.budgets()
        if not budgets:
            raise ConfigError(f"give at least one budget: {', '.join(map(_option, NAMES))}")
        return side_by_side(budgets)

    def limits(self) -> dict[str, tuple[int, ...]]:
        """Return the widths that layers are limited to.

        Raises:
            ConfigError: one is malformed, or given twice.
        """
        found: dict[str, tuple[int, ...]] = {}
        for text in self.layer_bits:
            name, _, widths = text.rpartition("=")
            try:
                bits = tuple(int(width) for width in widths.split(","))
            except ValueError:
                bits = ()
            if not name or not bits:
                raise ConfigError(f"--layer-bits: cannot read {text!r}; write conv1=8, or layer1.*=8,4")
            if name in found:
                raise ConfigError(f"--layer-bits: {name!r} is given twice")
            found[name] = bits
        return found

    def latencies(self) -> dict[str, dict[int, float]] | None:
        """Return the latency table, or None.

        Raises:
            ConfigError: the file is missing or no latency table.
        """
        if self.latency_table is None:
            return None
        from bitswitch.training.run import read_json

        table: Any = read_json(self.latency_table)
        if table is None:
            raise ConfigError(f"there is no latency table {self.latency_table}")
        rows = table.values() if isinstance(table, dict) else [None]
        if not all(isinstance(row, dict) and all(width.isdigit() for width in row) for row in rows):
            raise ConfigError(f"{self.latency_table} is no latency table; it must be {{layer: {{width: seconds}}}}")
        return {name: {int(width): seconds for width, seconds in row.items()} for name, row in table.items()}


def _option(budget: str) -> str:
    return "--bytes" if budget == "weight_bytes" else f"--{budget.replace('_', '-')}"


def load_sensitivity(given: Path | None, options: TrainedOptions, trained: Trained, model: nn.Module) -> Sensitivity:
    """Return the traces that a user named, or those that lie where commands and recipes leave them.

    Raises:
        ConfigError: there are none, or they belong to another network.
    """
    from bitswitch.mixed import Sensitivity
    from bitswitch.recipes.supernet import SENSITIVITY_NAME

    folders = (options.results, trained.path / RESULTS_FOLDER, trained.path)
    path = given or next((f / SENSITIVITY_NAME for f in folders if (f / SENSITIVITY_NAME).exists()), None)
    if path is None:
        raise ConfigError(f"the sensitivity is not known yet; run: bitswitch sensitivity {quote(str(options.trained))}")
    return Sensitivity.load(path, model)


@contextmanager
def silent_solver() -> Iterator[None]:
    """Throw away what C code writes to standard output.

    HiGHS, which scipy brings along, has a forgotten print in it (`transformNewIntegerFeasibleSolution`) that no option
    of scipy's turns off. Only for a process of our own: its threads share standard output.
    """
    try:
        flush = ctypes.CDLL(None).fflush
        kept = os.dup(1)
    except (OSError, TypeError, AttributeError):  # no such C library, or no standard output
        yield
        return
    flush(None)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        # What C has buffered must not come out later.
        flush(None)
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)
