"""Time joint training of all widths against a training of each width alone, batch by batch.

    python benchmarks/joint_cost.py [--recipe cifar10-resnet20] [--bits 8 6 4 2] [--distill none] [--repeat 7]
        [--json FILE]

All of them take their batches from loaders of their own, with augmentation, and train what the recipe says, each on the
same images. Separate trainings of equal epochs cost the sum of their steps; a joint step trains every width on one
batch, or, with turns, the lowest width and one other. With --distill float each of them has a float teacher, which
joint training runs once for all widths of a batch. The steps are interleaved; medians are printed. What surrounds the
steps (start, evaluation, checkpoints) is not timed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import bitswitch as bs
from bitswitch.bench.machine import machine
from bitswitch.bench.output import add_options, write_json
from bitswitch.bench.timing import Timing, interleave
from bitswitch.cli.tables import print_table
from bitswitch.models import build_model
from bitswitch.recipes import RECIPES, Recipe, get_recipe
from bitswitch.recipes.loaders import RecipeData
from bitswitch.recipes.phases import Evaluated, JointPhase
from bitswitch.training import keep_freed_memory

JOINT, ROTATE = "joint", "joint, rotating"


def step_of(recipe: Recipe, data: RecipeData) -> Callable[[], None]:
    """Return a function that takes a batch and trains the widths of a recipe on it."""
    torch.manual_seed(0)
    batch_size = recipe.joint.batch_size
    network = build_model(recipe.model.name, **recipe.model.options)
    if recipe.run.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = list(itertools.islice(data.calibration(batch_size), 1))
    model = bs.prepare(network, recipe.prepare.bits, example_inputs=images[0][0][:2])
    bs.calibrate(model, images)
    loader = data.training(batch_size, seed=0)
    phase = JointPhase(model, network, recipe, loader, Evaluated(data.held_out(), "held-out"), torch.device("cpu"))

    def endless() -> Iterator[Any]:
        for epoch in itertools.count():
            yield from phase.batches(epoch, 0)

    batches = endless()
    return lambda: phase.step(next(batches))


def measure(recipe: Recipe, bits: Sequence[int], repeat: int, distill: str = "none") -> dict[str, Timing]:
    """Return the time of a step of joint training, of the same with turns, and of each width alone.

    Args:
        recipe: data, network and batch size; its widths and turns are replaced.
        bits: the widths.
        repeat: rounds.
        distill: the teacher of all of them.
    """
    data = RecipeData(recipe.data, recipe.run, torch.device("cpu"))
    # Long enough for the schedule not to end.
    recipe = recipe.replace(
        joint={"epochs": max(recipe.joint.epochs, repeat + 1), "schedule": "constant", "distill": distill}
    )
    steps = {
        JOINT: step_of(recipe.replace(prepare={"bits": tuple(bits)}, joint={"turns": "all"}), data),
        ROTATE: step_of(recipe.replace(prepare={"bits": tuple(bits)}, joint={"turns": "rotate"}), data),
    }
    for width in bits:
        steps[f"{width} bits alone"] = step_of(recipe.replace(prepare={"bits": (width,)}), data)
    return interleave(steps, repeat=repeat)


def rows_of(times: dict[str, Timing]) -> list[list[str]]:
    """Return a row for each training: its time a batch, and over the sum of those of single widths."""
    separate = sum(timing.median for name, timing in times.items() if name not in (JOINT, ROTATE))
    rows = [[name, f"{timing.median * 1e3:.1f}", ""] for name, timing in times.items()]
    for row, name in zip(rows, times, strict=True):
        if name in (JOINT, ROTATE):
            row[2] = f"{times[name].median / separate:.3f}"
    return [*rows, ["all widths, each alone", f"{separate * 1e3:.1f}", "1"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="cifar10-resnet20")
    parser.add_argument("--bits", type=int, nargs="+", default=(8, 6, 4, 2))
    parser.add_argument("--distill", choices=("none", "float"), default="none")
    add_options(parser, repeat=7)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    recipe = get_recipe(options.recipe)
    about = machine()
    print(about)
    times = measure(recipe, options.bits, options.repeat, options.distill)
    print(f"\n{recipe.name}, batches of {recipe.joint.batch_size}, distillation: {options.distill}")
    print_table(["", "ms a batch", "/ separate"], rows_of(times))
    if options.json is not None:
        write_json(options.json, about, {"steps": {name: timing.to_json() for name, timing in times.items()}})


if __name__ == "__main__":
    main()
