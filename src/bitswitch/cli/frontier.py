"""`bitswitch frontier`: what SubNets of every size are worth."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bitswitch.cli.mixed_options import BudgetOptions, ImageOptions, load_sensitivity, silent_solver
from bitswitch.cli.outputs import check_output_folder
from bitswitch.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from bitswitch.data import Loader
    from bitswitch.mixed import Exploration, Measured, Measurements, RankCorrelation, SearchSpace, Sensitivity
    from bitswitch.recipes.config import DataConfig
    from bitswitch.recipes.trained import FirstBatches, ImageParts, Trained
    from bitswitch.report.frontier import FrontierData

_ABOUT = (
    "Measure SubNets without retraining: uniform widths, and within every budget the optimum of the integer programme, "
    "what local search by accuracy makes of it, and random SubNets. The same command goes on where it was stopped."
)
JSON_NAME, CSV_NAME, PLOT_NAME, WIDTHS_NAME = "frontier.json", "frontier.csv", "frontier.png", "frontier_widths.png"
_LEAST = {
    "points": 1,
    "random": 0,
    "seeds": 1,
    "rounds": 0,
    "neighbours": 1,
    "fitted": 0,
    "reestimate": 0,
    "batch_size": 1,
}
SEARCH_SCORES, UNSEEN_SCORES = "scores_search.json", "scores_unseen.json"


@dataclass(frozen=True)
class FrontierOptions(BudgetOptions, ImageOptions):
    """Budgets, and how much is measured."""

    points: int = 9
    """Budgets of the average width, evenly between the lowest and the highest, if none are given."""
    random: int = 10
    """Random SubNets of each budget; fewer where few fit."""
    seeds: int = 4
    """Solutions of the integer programme that the local search starts from."""
    rounds: int = 6
    """Rounds of the local search at most; 0 for none."""
    neighbours: int = 12
    """SubNets that a round measures."""
    fitted: int = 4
    """Solutions of the programme under an objective that is fitted to all measurements, for each budget; 0 for none."""
    search_share: float = 0.5
    """Share of the held-out images that choices are made on, if the recipe keeps no images for validation."""
    reestimate: int = 0
    """Training images that every SubNet's BatchNorm statistics are estimated on anew; 0 leaves those of training."""
    engine: bool = False
    """Measure on the integers that deployment computes with, on the CPU: several times as fast as simulating them."""
    metric: Literal["accuracy", "top5"] = "accuracy"
    """Share of right answers, or of answers among the best five."""
    batch_size: int = 128
    """Images a step, over all processes together."""
    seed: int = 0
    """Of random SubNets and of the local search."""


def run(arguments: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    options = tyro.cli(FrontierOptions, prog="bitswitch frontier", description=_ABOUT, args=arguments)
    for name, least in _LEAST.items():
        if getattr(options, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}; got {getattr(options, name)}")
    check_output_folder("--output", options.output)
    from bitswitch.training import distributed

    try:
        _explore(options)
    except KeyboardInterrupt:
        print("the same command goes on where this one was stopped", file=sys.stderr)
        raise
    finally:
        distributed.shutdown()


def _explore(options: FrontierOptions) -> None:
    from bitswitch import deploy
    from bitswitch.cli.search import search_space
    from bitswitch.recipes.trained import FirstBatches, Trained, image_parts, images_of, open_images
    from bitswitch.training import distributed

    trained = Trained.open(options.trained)
    images = images_of(trained.recipe, options.trained, options.data, options.data_folder)
    device = distributed.init("gloo" if options.device == "cpu" or options.engine else None)
    model = trained.supernet()
    sensitivity = load_sensitivity(options.sensitivity, options, trained, model)
    space = search_space(options, options, trained, model, sensitivity)
    budgets = _budgets(options, space)
    source = open_images(trained, images, options.batch_size, device)
    parts = image_parts(source, options.search_share)
    batch = min(options.batch_size, max(1, options.reestimate))
    statistics = FirstBatches(source.calibration(batch, augment=True), -(-options.reestimate // batch))
    network = deploy(model) if options.engine else model.to(device)
    source.check_outputs(network)
    run = _Run(options, trained, model, network, parts, statistics, images)
    with silent_solver():
        found = run.explore(space, budgets)
    data = run.unseen(found, sensitivity)
    if distributed.is_main():
        _write(data, space, options)
        _print(data, parts, options)


def _budgets(options: FrontierOptions, space: SearchSpace) -> list[dict[str, float]]:
    """Return the budgets given, or average widths evenly between the lowest and the highest that are possible."""
    if options.budgets():
        return options.searches()
    low, high = (
        space.costs.of({name: choose(widths) for names, widths in space.choices for name in names}).average_bits
        for choose in (min, max)
    )
    if low == high:
        raise ConfigError("no layer has a choice of widths")
    count = options.points + 1
    # Rounded up, where it must be: 60 bits of 18 layers are more than 3.333333 on average.
    return [{"average_bits": math.ceil((low + (high - low) * i / count) * 1e6 - 1e-3) / 1e6} for i in range(1, count)]


@dataclass(frozen=True)
class _Run:
    """Measurements of one network, or of its engine, on the images of the search and on those that it does not see."""

    options: FrontierOptions
    trained: Trained
    model: nn.Module
    measured: nn.Module
    parts: ImageParts
    statistics: FirstBatches
    images: DataConfig

    def explore(self, space: SearchSpace, budgets: Sequence[Mapping[str, float]]) -> Exploration:
        """Find SubNets by their accuracy on the images of the search."""
        from bitswitch.mixed import explore
        from bitswitch.training import distributed

        def progress(message: str) -> None:
            if distributed.is_main():
                print(message, file=sys.stderr, flush=True)

        return explore(
            space,
            self._measurements(self.parts.search, SEARCH_SCORES, "search"),
            budgets,
            num_random=self.options.random,
            num_seeds=self.options.seeds,
            rounds=self.options.rounds,
            neighbours=self.options.neighbours,
            num_fitted=self.options.fitted,
            seed=self.options.seed,
            progress=progress,
        )

    def unseen(self, found: Exploration, sensitivity: Sensitivity) -> FrontierData:
        """Measure the SubNets that matter on images that the search did not see."""
        from bitswitch.report.frontier import FrontierData

        measure = self._measurements(self.parts.final, UNSEEN_SCORES, "final")
        measured = measure(row.subnet for row in [*found.chosen, *found.random])
        scores = {row.subnet.precision: row.score for row in measured}
        about = {
            "metric": self.options.metric,
            "reestimate": self.options.reestimate,
            "engine": self.options.engine,
            "objective": self.options.objective,
            "search_images": {"which": self.parts.names[0], "number": self.parts.search.num_samples},
            "unseen_images": {"which": self.parts.names[1], "number": self.parts.final.num_samples},
        }
        correlations = self._correlations(measure(row.subnet for row in found.random), sensitivity)
        return FrontierData(found, scores, self.parts.final.num_samples, correlations, about)

    def _correlations(self, rows: Sequence[Measured], sensitivity: Sensitivity) -> dict[str, RankCorrelation]:
        from bitswitch.mixed import perturbation, rank_correlations, weighted_bits

        if len(rows) < 4:
            return {}
        proxies = {
            "perturbation": perturbation(self.model, sensitivity),
            "weighted-bits": weighted_bits(self.model, sensitivity),
        }
        return rank_correlations(rows, proxies)

    def _measurements(self, images: Loader, name: str, part: str) -> Measurements:
        from bitswitch import deploy
        from bitswitch.mixed import Measurements, reestimated
        from bitswitch.precision import Precision
        from bitswitch.training import evaluate

        def accuracies(precisions: Sequence[Precision]) -> list[float]:
            if not self.options.reestimate:
                return list(evaluate(self.measured, images, precisions, self.options.metric).values())
            found = []
            for precision in precisions:
                with reestimated(self.model, precision, self.statistics):
                    network = deploy(self.model) if self.options.engine else self.model
                    found += evaluate(network, images, [precision], self.options.metric).values()
            return found

        data, order = self.images, self.statistics.loader.order
        statistics = [self.statistics.loader.fingerprint(), self.statistics.count, order.batch_size, order.seed]
        which = (data.kind, data.image_size, data.validation, data.split_seed, data.max_train, data.max_eval)
        context = {
            "checkpoint": self.trained.identity(),
            "metric": self.options.metric,
            "statistics": statistics if self.options.reestimate else None,
            "engine": self.options.engine,
            "images": [part, self.options.search_share, images.num_samples, images.fingerprint(), *which],
        }
        # Decoding files costs more than the network does: several SubNets then share a pass over them.
        at_once = 8 if data.kind == "folder" else 1
        return Measurements(accuracies, self.options.results / name, context, at_once=at_once)


def _write(data: FrontierData, space: SearchSpace, options: FrontierOptions) -> None:
    from bitswitch._files import write_file
    from bitswitch.mixed import to_csv
    from bitswitch.report.mixed_plots import plot_frontier, plot_widths
    from bitswitch.training.run import write_json

    folder = options.results
    write_json(folder / JSON_NAME, data.to_json())
    write_file(folder / CSV_NAME, to_csv(data.rows()).encode())
    plot_frontier(data, folder / PLOT_NAME)
    rows = {part.best.subnet.precision: part.best for part in data.exploration.within}.values()
    labels = [(f"{m.subnet.cost.average_bits:.2f} bits  {data.percent(m):.2f} %", m.subnet.precision) for m in rows]
    plot_widths(labels, list(space.costs.layers), folder / WIDTHS_NAME)


def _print(data: FrontierData, parts: ImageParts, options: FrontierOptions) -> None:
    from bitswitch.cli.search import COST_HEADER, cost_cells, describe_budgets
    from bitswitch.cli.tables import print_table

    def shown(row: Measured | None) -> str:
        return "–" if row is None else f"{data.percent(row):.2f} ± {data.error(row):.2f}"

    found = data.exploration
    rows = [
        (f"all {row.subnet.cost.average_bits:g} bits", *cost_cells(row.subnet), shown(row)) for row in found.uniform
    ]
    print_table(("uniform", *COST_HEADER, f"{options.metric} %"), rows)
    rows = [
        (
            describe_budgets(part.budgets),
            *cost_cells(part.best.subnet),
            shown(part.optimum),
            shown(part.best),
            *([shown(part.best_random)] if options.random else []),
        )
        for part in found.within
    ]
    least, most = (of(len(part.random) for part in found.within) for of in (min, max))
    number = f"{least}" if least == most else f"{least} … {most}"
    chance = [f"best of {number} random"] if options.random else []
    print_table(("budget", *COST_HEADER, "programme", "refined", *chance), rows)
    _print_correlations(data)
    print(f"chosen on {parts.search.num_samples:,} images ({parts.names[0]})")
    print(f"accuracy on {parts.final.num_samples:,} images ({parts.names[1]}), ± one standard error")
    folder: Path = options.results
    print(f"SubNets: {folder / CSV_NAME}, {folder / JSON_NAME}")
    print(f"plots:   {folder / PLOT_NAME}, {folder / WIDTHS_NAME}")


def _print_correlations(data: FrontierData) -> None:
    from bitswitch.cli.tables import print_table

    if not data.correlations:
        return
    rows = [
        (
            name,
            f"{value.rho:.3f}",
            f"{value.low:.3f} … {value.high:.3f}",
            "–" if value.within is None else f"{value.within:.3f}",
        )
        for name, value in data.correlations.items()
    ]
    count = next(iter(data.correlations.values())).count
    print_table((f"order of {count} random SubNets", "Spearman's ρ", "95 % interval", "at equal average bits"), rows)
