"""Measure what SuperNets are worth without retraining, by their run folders.

    python benchmarks/supernet.py runs/cifar10-resnet20-hasb runs/cifar10-resnet20-uniform --json supernet.json

Each run must have kept training images for validation (--data.validation): SubNets are chosen on these, and every
figure is measured on the test images. For each run it reports, with 95 % confidence intervals over the test images,

1. the SubNet of 3 bits on average against uniform 3 bits;
2. between 2 and 3 bits, the SubNet that the search chose against the best of 50 random SubNets of the same budget: the
   one that is best on the validation images and, with --luckiest, the one that is best on the test images, which no one
   could choose; to find it takes longer than all the rest;
3. how well each proxy orders all random SubNets: Spearman's ρ with their accuracy on the validation images; beside it
   an objective that is fitted to nine tenths of them, on the tenth that is left out. If the sensitivity has traces with
   respect to the inputs, the perturbation by the errors of weights and inputs is one of the proxies.

SubNets run on the integer engine; with --reestimate, on one whose BatchNorm statistics are estimated for the SubNet.
Scores are kept in the folder of --results; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.data import Loader
from bitswitch.errors import ConfigError
from bitswitch.mixed import (
    Measured,
    Measurements,
    SearchSpace,
    Sensitivity,
    SubNet,
    WithinBudget,
    explore,
    fitted,
    input_errors,
    measure_costs,
    perturbation,
    rank_correlations,
    reestimated,
    weighted_bits,
)
from bitswitch.mixed.objective import ObjectiveTable
from bitswitch.precision import Precision
from bitswitch.recipes.supernet import SENSITIVITY_NAME
from bitswitch.recipes.trained import Trained, images_of, open_images
from bitswitch.training.run import write_json


@dataclass(frozen=True)
class Settings:
    """What is measured; see `--help`."""

    averages: tuple[float, ...] = (2.25, 2.5, 2.75, 3.0)
    random: int = 50
    rounds: int = 6
    neighbours: int = 12
    luckiest: bool = False
    reestimate: int = 0
    objective: str = "perturbation"
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """How much more accurate one SubNet is than another one on the same images, in percent.

    Attributes:
        difference: of the accuracies.
        low: lower end of its 95 % confidence interval, from the images on which only one of them is right.
        high: upper end.
    """

    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor) -> Comparison:
        """Compare two vectors of right answers, bool (N,)."""
        differences = 100 * (ours.double() - theirs.double())
        mean, half = differences.mean().item(), 1.96 * differences.std().item() / math.sqrt(len(differences))
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.difference:+.2f} ({self.low:+.2f} … {self.high:+.2f})"


class Judge:
    """Accuracies of the SubNets of a run.

    Args:
        run: the run folder.
        settings: what is measured.
        results: where scores are kept.
    """

    def __init__(self, run: Path, settings: Settings, results: Path) -> None:
        self.settings = settings
        self.results = results / run.name
        self.trained = Trained.open(run)
        self.model: nn.Module = self.trained.supernet()
        config = images_of(self.trained.recipe, run, None, None)
        if config.validation is None:
            raise ConfigError(f"{run} was trained on all images; train it with --data.validation")
        data = open_images(self.trained, config, 512, torch.device("cpu"))
        parts = {"validation": data.validation(), "test": data.held_out()}
        self.parts: dict[str, Loader] = {name: part.sample(settings.limit) for name, part in parts.items()}
        self.engine = bs.deploy(self.model)
        batches = data.calibration(128, augment=True) if settings.reestimate else ()
        self.statistics = list(itertools.islice(batches, settings.reestimate))
        self._data = data
        self._right: dict[tuple[Precision, str], Tensor] = {}

    def input_errors(self, batches: int = 4) -> ObjectiveTable:
        """Return the errors of the layers' inputs by layer and width, on training images as they are."""
        network = self.trained.supernet()
        bs.unfreeze(network)
        return input_errors(network, itertools.islice(self._data.calibration(128), batches))

    def right(self, precision: Precision, part: str) -> Tensor:
        """Return which images a SubNet classifies rightly, bool (N,)."""
        if (precision, part) not in self._right:
            self._right[precision, part] = self._measure(precision, part)
        return self._right[precision, part]

    def _measure(self, precision: Precision, part: str) -> Tensor:
        engine = self.engine
        if self.statistics:
            with reestimated(self.model, precision, self.statistics):
                engine = bs.deploy(self.model)
        return torch.cat(
            [engine(images, precision=precision).argmax(1) == labels for images, labels in self.parts[part]]
        )

    def measurements(self, part: str) -> Measurements:
        """Return the accuracies on a part of the images, kept in a file."""

        def accuracies(precisions: Sequence[Precision]) -> list[float]:
            return [self.right(precision, part).double().mean().item() for precision in precisions]

        context = [self.trained.identity(), part, self.settings.reestimate, self.settings.limit]
        return Measurements(accuracies, self.results / f"{part}.json", context, at_once=1)


def measure(run: Path, sensitivity: Sensitivity, settings: Settings, results: Path) -> dict[str, Any]:
    """Return all figures of a run."""
    judge = Judge(run, settings, results)
    proxies = {
        "perturbation": perturbation(judge.model, sensitivity),
        "weighted-bits": weighted_bits(judge.model, sensitivity),
    }
    if sensitivity.inputs:
        proxies["with input errors"] = perturbation(judge.model, sensitivity, judge.input_errors())
    space = SearchSpace(measure_costs(judge.model), proxies[settings.objective])
    found = explore(
        space,
        judge.measurements("validation"),
        [{"average_bits": average} for average in settings.averages],
        num_random=settings.random,
        rounds=settings.rounds,
        neighbours=settings.neighbours,
        seed=settings.seed,
        progress=lambda text: print(f"{run.name}: {text}", flush=True),
    )
    on_test = judge.measurements("test")
    uniform = on_test(row.subnet for row in found.uniform)
    return {
        "run": run.name,
        "settings": asdict(settings),
        "test_images": len(judge.right(uniform[0].subnet.precision, "test")),
        "uniform": {f"{row.subnet.cost.average_bits:g}": row.score for row in uniform},
        "budgets": [_within(judge, on_test, part, uniform) for part in found.within],
        "correlations": {name: value.to_json() for name, value in rank_correlations(found.random, proxies).items()},
        "fitted": _left_out(space, found.random),
    }


def _left_out(space: SearchSpace, rows: Sequence[Measured], folds: int = 10) -> float | None:
    """Return Spearman's ρ between scores and what `fitted` predicts for SubNets that it was not given."""
    predicted: dict[Precision, float] = {}
    for fold in range(folds):
        try:
            learned = space.minimising(fitted(space, [row for i, row in enumerate(rows) if i % folds != fold]))
        except ConfigError:
            return None
        predicted |= {
            row.subnet.precision: -learned.evaluate(row.subnet.precision).sensitivity for row in rows[fold::folds]
        }
    return float(spearmanr([row.score for row in rows], [predicted[row.subnet.precision] for row in rows]).statistic)


def _within(judge: Judge, on_test: Measurements, part: WithinBudget, uniform: Sequence[Measured]) -> dict[str, Any]:
    """Compare what was chosen within a budget with chance, and with the uniform width of that many bits."""
    assert part.best_random is not None
    rivals: dict[str, SubNet] = {"best random": part.best_random.subnet}
    if judge.settings.luckiest:
        drawn = on_test(row.subnet for row in part.random)
        rivals["luckiest random"] = max(drawn, key=lambda row: row.score).subnet
    average = part.budgets["average_bits"]
    for row in uniform:
        if row.subnet.cost.average_bits == average:
            rivals["uniform"] = row.subnet
    chosen = judge.right(part.best.subnet.precision, "test")
    optimum = on_test([part.optimum.subnet])[0].score
    return {
        "average_bits": average,
        "chosen": {"precision": part.best.subnet.precision.to_json(), "accuracy": chosen.double().mean().item()},
        "optimum": {"precision": part.optimum.subnet.precision.to_json(), "accuracy": optimum},
        "against": {
            name: asdict(Comparison.of(chosen, judge.right(rival.precision, "test"))) for name, rival in rivals.items()
        },
    }


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Return the figures of all runs as Markdown."""
    lines = []
    for result in results:
        widths = ", ".join(f"{bits} bits {100 * value:.2f} %" for bits, value in result["uniform"].items())
        lines += [f"### {result['run']}", "", f"{result['test_images']:,} test images. Uniform: {widths}.", ""]
        lines += [
            "| average bits | chosen % | programme % | − best random | − luckiest random | − uniform |",
            "|---|---|---|---|---|---|",
        ]
        for row in result["budgets"]:
            against = {name: str(Comparison(**value)) for name, value in row["against"].items()}
            cells = [f"{row['average_bits']:g}"]
            cells += [f"{100 * row[name]['accuracy']:.2f}" for name in ("chosen", "optimum")]
            cells += [against.get(name, "–") for name in ("best random", "luckiest random", "uniform")]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "| proxy | ρ | 95 % interval | at equal average bits |", "|---|---|---|---|"]
        for name, value in result["correlations"].items():
            rho, low, high, within = (_shown(value[key]) for key in ("rho", "low", "high", "within"))
            lines.append(f"| {name} | {rho} | {low} … {high} | {within} |")
        lines.append(f"| fitted | {_shown(result['fitted'])} | – | – |")
        lines.append("")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _sensitivity(path: Path | None, runs: Sequence[Path]) -> Sensitivity:
    """Return one sensitivity for all runs: that of a file, or the one that a run has drawn by."""
    for candidate in [path] if path is not None else [run / SENSITIVITY_NAME for run in runs]:
        if candidate is not None and candidate.exists():
            return Sensitivity.load(candidate)
    raise ConfigError("no run has a sensitivity; make a file with `bitswitch sensitivity` and name it by --sensitivity")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--sensitivity", type=Path, help="file of traces; by default that of the first run with one")
    parser.add_argument("--averages", type=float, nargs="+", default=Settings.averages, help="budgets in bits")
    parser.add_argument("--random", type=int, default=Settings.random, help="random SubNets of each budget")
    parser.add_argument("--luckiest", action="store_true", help="measure all random SubNets on the test images")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="of the local search; 0: the programme's")
    parser.add_argument("--neighbours", type=int, default=Settings.neighbours, help="SubNets of a round")
    parser.add_argument("--reestimate", type=int, default=0, help="batches of 128 for BatchNorm statistics; 0: as is")
    parser.add_argument("--objective", choices=("perturbation", "weighted-bits"), default=Settings.objective)
    parser.add_argument("--limit", type=int, help="images of each part at most, drawn at random, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("supernet-scores"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    settings = Settings(
        tuple(options.averages),
        options.random,
        options.rounds,
        options.neighbours,
        options.luckiest,
        options.reestimate,
        options.objective,
        options.limit,
        options.seed,
    )
    sensitivity = _sensitivity(options.sensitivity, options.runs)
    results = [measure(run, sensitivity, settings, options.results) for run in options.runs]
    print(tables(results))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, json.loads(json.dumps(results)))


if __name__ == "__main__":
    main()
