"""`bitswitch search`: the widths that hurt least within budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import tyro

from bitswitch.cli.mixed_options import BudgetOptions, TrainedOptions, load_sensitivity, silent_solver
from bitswitch.cli.outputs import check_output_folder
from bitswitch.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from bitswitch.mixed import SearchSpace, Sensitivity, SubNet
    from bitswitch.recipes.trained import Trained

_ABOUT = (
    "Choose a width for every layer within budgets, so that the network suffers least as far as the sensitivity tells: "
    "proven optima of an integer programme. Several values of a budget are as many searches; budgets of several kinds "
    "hold together, side by side."
)
JSON_NAME, CSV_NAME, PLOT_NAME = "search.json", "search.csv", "search.png"


@dataclass(frozen=True)
class SearchOptions(BudgetOptions, TrainedOptions):
    """Budgets, limits and the objective."""

    solutions: int = 1
    """SubNets for each budget: the best one and the next best ones."""
    save: Path | None = None
    """Checkpoint folder for the first SubNet, alone: its bits and nothing of the other widths."""


@dataclass(frozen=True)
class Found:
    """A SubNet of a search.

    Attributes:
        budgets: that it was searched for.
        rank: 1 for the optimum.
        subnet: its widths and costs.
    """

    budgets: Mapping[str, float]
    rank: int
    subnet: SubNet

    def to_row(self) -> dict[str, Any]:
        """Return flat JSON values."""
        from bitswitch.mixed.frontier import cost_row

        limits = {f"budget_{name}": value for name, value in self.budgets.items()}
        return {**limits, "rank": self.rank, "precision": str(self.subnet.precision), **cost_row(self.subnet)}


def run(arguments: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    options = tyro.cli(SearchOptions, prog="bitswitch search", description=_ABOUT, args=arguments)
    if options.solutions < 1:
        raise ConfigError(f"--solutions must be at least 1; got {options.solutions}")
    check_output_folder("--output", options.output)
    from bitswitch.recipes.trained import Trained

    budgets = options.searches()
    trained = Trained.open(options.trained)
    if options.save is not None:
        _check_save(options.save, trained)
    model = trained.supernet()
    space = search_space(
        options, options, trained, model, load_sensitivity(options.sensitivity, options, trained, model)
    )
    with silent_solver():
        found = [
            Found(budget, rank, subnet)
            for budget in budgets
            for rank, subnet in enumerate(space.solve(budget, options.solutions), start=1)
        ]
    _write(found, list(space.costs.layers), options)
    if options.save is not None:
        _save(found[0].subnet, model, trained, options.save)
    _print(found, space, trained, options)


def search_space(
    options: TrainedOptions, budgets: BudgetOptions, trained: Trained, model: nn.Module, sensitivity: Sensitivity
) -> SearchSpace:
    """Return the widths that may be chosen, and what they cost; BitOPs are known if the shape of the images is.

    Raises:
        BitswitchError: the options do not fit the network.
    """
    from bitswitch.mixed import SearchSpace, measure_costs
    from bitswitch.mixed.objective import resolve_objective

    example = _example(options, budgets, trained)
    costs = measure_costs(model, example, latency_table=budgets.latencies())
    return SearchSpace(costs, resolve_objective(model, sensitivity, budgets.objective), budgets.limits())


def _example(options: TrainedOptions, budgets: BudgetOptions, trained: Trained) -> Any:
    """Return one input of the right shape, or None if that is not known and not needed."""
    import torch

    from bitswitch.recipes.loaders import input_shape
    from bitswitch.recipes.trained import images_of

    try:
        images = images_of(trained.recipe, options.trained, options.data, None)
    except ConfigError:
        if budgets.bitops:
            raise
        return None
    return torch.zeros(1, *input_shape(images))


def _write(found: Sequence[Found], layers: Sequence[str], options: SearchOptions) -> None:
    from bitswitch._files import write_file
    from bitswitch.mixed import to_csv
    from bitswitch.report.mixed_plots import plot_widths
    from bitswitch.training.run import write_json

    folder = options.results
    folder.mkdir(parents=True, exist_ok=True)
    subnets = [
        {"budgets": dict(f.budgets), **{k: v for k, v in f.to_row().items() if not k.startswith("budget_")}}
        for f in found
    ]
    content = {"format": "bitswitch-search", "version": 1, "objective": options.objective, "subnets": subnets}
    write_json(folder / JSON_NAME, content)
    write_file(folder / CSV_NAME, to_csv([f.to_row() for f in found]).encode())
    plot_widths([(_label(f), f.subnet.precision) for f in found], layers, folder / PLOT_NAME)


def _check_save(folder: Path, trained: Trained) -> None:
    """Find out before the search whether its SubNet can be saved.

    Raises:
        ConfigError: the folder is that of the network searched.
        CheckpointError: it holds the config.json of something else.
    """
    from bitswitch.checkpoint.save import refuse_foreign

    if folder.resolve() in (trained.path.resolve(), trained.checkpoint.resolve()):
        raise ConfigError(f"--save {folder} is the folder of the network that is searched; name another one")
    refuse_foreign(folder)


def _save(subnet: SubNet, model: nn.Module, trained: Trained, folder: Path) -> None:
    import bitswitch as bs
    from bitswitch.checkpoint import read_info
    from bitswitch.mixed import extract
    from bitswitch.recipes.convert import to_json
    from bitswitch.recipes.stored import RECIPE_NAME
    from bitswitch.training.run import write_json

    architecture = read_info(trained.checkpoint).config.architecture
    bs.save(extract(model, subnet.precision), folder, architecture=architecture)
    # So that it can be evaluated on the images of its recipe, and never on those of another network's.
    (folder / RECIPE_NAME).unlink(missing_ok=True)
    if trained.recipe is not None:
        write_json(folder / RECIPE_NAME, to_json(trained.recipe))


def _label(found: Found) -> str:
    return f"{found.subnet.cost.average_bits:.2f} bits" + (f", no. {found.rank}" if found.rank > 1 else "")


def _print(found: Sequence[Found], space: SearchSpace, trained: Trained, options: SearchOptions) -> None:
    from bitswitch.cli.tables import print_table

    header = ["budget", *(["no."] if options.solutions > 1 else []), *COST_HEADER, "objective", "widths in layer order"]
    rows = []
    for item in found:
        rank = [str(item.rank)] if options.solutions > 1 else []
        row = [describe_budgets(item.budgets), *rank, *cost_cells(item.subnet), f"{item.subnet.sensitivity:.4g}"]
        rows.append([*row, digits(item.subnet, list(space.costs.layers))])
    print_table(header, rows, left=(0, len(header) - 1))
    print(f"SubNets: {options.results / CSV_NAME}, {options.results / JSON_NAME}")
    print(f"plot:    {options.results / PLOT_NAME}")
    if options.save is not None:
        print(f"saved:   {options.save}, measure it with: bitswitch evaluate {quote(str(options.save))}")
        return
    print(f"measure: bitswitch evaluate {quote(str(trained.checkpoint))} --precision {found[0].subnet.precision}")


COST_HEADER = ("average bits", "by weights", "size", "BitOPs")


def cost_cells(subnet: SubNet) -> list[str]:
    """Return the cells of a SubNet under `COST_HEADER`."""
    from bitswitch._summary import format_bytes
    from bitswitch.cli.tables import format_count

    cost = subnet.cost
    bitops = "–" if cost.bitops is None else format_count(cost.bitops)
    return [f"{cost.average_bits:.2f}", f"{cost.weighted_bits:.2f}", format_bytes(cost.weight_bytes), bitops]


def describe_budgets(budgets: Mapping[str, float]) -> str:
    """Return budgets as text."""
    return ", ".join(f"{name.replace('_', ' ')} {value:,.10g}" for name, value in budgets.items())


def digits(subnet: SubNet, layers: Sequence[str]) -> str:
    """Return the widths of all layers in order, a digit each."""
    widths = dict(subnet.precision.layers)
    return "".join(str(widths[name]) for name in layers)
