"""`bitswitch train`: run a recipe, or continue one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro
from rich.console import Console

from bitswitch.errors import BitswitchError, ConfigError
from bitswitch.recipes import DESCRIPTIONS, RECIPES, Recipe

if TYPE_CHECKING:
    from bitswitch.recipes.results import Results
    from bitswitch.training.run_loop import Observer

_PROG = "bitswitch train"
_ABOUT = (
    "Run a recipe in a run folder: train or load the float network, train all widths jointly, store the network, "
    "evaluate and report. The same command continues a run that was stopped; so does --resume FOLDER."
)


@dataclass(frozen=True)
class TrainOptions:
    """Where the run goes, and the fields of the recipe."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    runs: Path = Path("runs")
    """Folder of run folders."""
    name: str | None = None
    """The run folder is RUNS/<recipe>-NAME; without, an unfinished equal run continues, or the time is the name."""
    new: bool = False
    """Without a name, begin a new run although an unfinished equal one is there."""


@dataclass(frozen=True)
class ResumeOptions:
    """Continue a run as it was started."""

    resume: Path
    """The run folder."""


def run(arguments: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    if any(word == "--resume" or word.startswith("--resume=") for word in arguments):
        folder = tyro.cli(ResumeOptions, prog=_PROG, description="Continue a run.", args=arguments).resume
        _train(_stored_recipe(folder), lambda: folder)
        return
    options = tyro.cli(_choices(), prog=_PROG, description=_ABOUT, args=arguments)
    options.recipe.check()
    _train(options.recipe, lambda: _folder(options))


def _choices() -> Any:
    """Return the union of the options of every recipe, a sub-command each."""
    kinds = [
        Annotated[
            TrainOptions,
            tyro.conf.subcommand(name, default=TrainOptions(recipe), description=DESCRIPTIONS[name]),
        ]
        for name, recipe in RECIPES.items()
    ]
    return Union[tuple(kinds)]  # noqa: UP007  (made from a list)


def _folder(options: TrainOptions) -> Path:
    name = options.recipe.name
    if options.name is not None:
        return options.runs / f"{name}-{options.name}"
    for folder in sorted(options.runs.glob(f"{name}-*"), reverse=True) if not options.new else []:
        if _continues(folder, options.recipe):
            return folder
    return options.runs / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _continues(folder: Path, recipe: Recipe) -> bool:
    """Return whether a folder is an unfinished run of a recipe that nobody is running; it may be anything else."""
    from bitswitch.recipes.job import completed, run_config
    from bitswitch.training.run import CONFIG_NAME, RESULTS_NAME, is_locked, read_json

    try:
        config = completed(read_json(folder / CONFIG_NAME))
    except (BitswitchError, OSError):
        return False
    return config == run_config(recipe) and not (folder / RESULTS_NAME).exists() and not is_locked(folder)


def _stored_recipe(folder: Path) -> Recipe:
    from bitswitch.recipes.stored import recipe_of_run
    from bitswitch.training.run import CONFIG_NAME

    recipe = recipe_of_run(folder)
    if recipe is None:
        raise ConfigError(f"{folder} is not a run folder: it has no {CONFIG_NAME} with a recipe")
    return recipe


def _train(recipe: Recipe, find_folder: Callable[[], Path]) -> None:
    """Run or continue a recipe and print its results."""
    from bitswitch.recipes.job import run_recipe
    from bitswitch.training import distributed, keep_freed_memory
    from bitswitch.training.run_state import broadcast_text

    keep_freed_memory()
    folder = None
    try:
        device = distributed.init("gloo" if recipe.run.device == "cpu" else None)
        # Only one process may look at the clock and at locks.
        folder = Path(broadcast_text(str(find_folder()) if distributed.is_main() else "", device))
        with ExitStack() as stack:
            results = run_recipe(recipe, folder, _observer(folder, stack))
        if distributed.is_main():
            _print_results(results, folder)
    except KeyboardInterrupt:
        if folder is not None and distributed.is_main():
            print(
                f"to continue from the last checkpoint: bitswitch train --resume {quote(str(folder))}", file=sys.stderr
            )
        raise
    finally:
        distributed.shutdown()


def _observer(folder: Path, stack: ExitStack) -> Observer:
    """Return what shows and records the run in this process; `stack` closes it."""
    from bitswitch.recipes.observers import Bar, LogLines, Observers, TensorBoard
    from bitswitch.training import distributed

    if not distributed.is_main():
        return Observers()

    def write(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    console = Console(stderr=True)
    write(f"run folder: {folder}")
    board = TensorBoard(folder / "tensorboard")
    stack.callback(board.close)
    if not console.is_terminal:
        return Observers(LogLines(write), board)
    bar = Bar(console)
    stack.callback(bar.close)
    return Observers(bar, board)


def _print_results(results: Results, folder: Path) -> None:
    from bitswitch.cli.tables import print_table
    from bitswitch.recipes.stored import CHECKPOINT_FOLDER
    from bitswitch.report import REPORT_NAME
    from bitswitch.report.tables import ACCURACY_HEADER, accuracy_rows

    rows = accuracy_rows(results.accuracy, results.float_accuracy, results.bytes_at, results.float_bytes)
    print_table(ACCURACY_HEADER, rows)
    print(f"checkpoint: {folder / CHECKPOINT_FOLDER}")
    print(f"report:     {folder / REPORT_NAME}")
