"""`bitswitch evaluate`: accuracy of a checkpoint at any precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bitswitch.errors import ConfigError
from bitswitch.precision import Precision

if TYPE_CHECKING:
    from bitswitch.checkpoint import CheckpointInfo

_ABOUT = "Measure the accuracy of a checkpoint at any precision, on the data of its recipe or on others."


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate."""

    checkpoint: tyro.conf.Positional[Path]
    """The checkpoint folder, or the run folder that it is in."""
    precision: tuple[str, ...] = ()
    """Widths such as 8 4 2, or precisions such as layer1=8,default=4; by default every width that can be opened."""
    data: Literal["digits", "cifar10", "folder"] | None = None
    """The images; by default those of the recipe that the checkpoint was trained with."""
    data_folder: str | None = None
    """Where they are; by default as in the recipe, or the environment variable BITSWITCH_DATA."""
    metric: Literal["accuracy", "top5"] = "accuracy"
    """Share of right answers, or of answers among the best five."""
    engine: bool = False
    """Evaluate the integers that deployment computes with, on the CPU, instead of simulating them in float32."""
    batch_size: int = 128
    """Images a step, over all processes together."""
    device: Literal["auto", "cpu"] = "auto"
    """GPU if there is one, or the CPU."""


def run(arguments: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    options = tyro.cli(EvaluateOptions, prog="bitswitch evaluate", description=_ABOUT, args=arguments)
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {options.batch_size}")
    asked = [Precision.parse(text) for text in options.precision]
    from bitswitch.training import distributed

    try:
        _evaluate(options, asked)
    finally:
        distributed.shutdown()


def _evaluate(options: EvaluateOptions, asked: list[Precision]) -> None:
    from bitswitch import deploy
    from bitswitch.cli.tables import print_table
    from bitswitch.recipes.stored import open_checkpoint
    from bitswitch.recipes.trained import Trained, images_of, open_images
    from bitswitch.training import distributed, evaluate

    trained = Trained.open(options.checkpoint)
    info = trained.info
    data = images_of(trained.recipe, options.checkpoint, options.data, options.data_folder)
    precisions = asked or [Precision.of(bits) for bits in info.bits_available]
    if not precisions:
        raise ConfigError(f"{options.checkpoint}: no width can be opened; missing are {', '.join(info.problems)}")
    for precision in precisions:
        info.config.table.resolve(precision)
    device = distributed.init("gloo" if options.device == "cpu" or options.engine else None)
    model = open_checkpoint(info, precisions[0])
    model = deploy(model) if options.engine else model.to(device)
    images = open_images(trained, data, options.batch_size, device)
    images.check_outputs(model)
    loader = images.held_out()
    found = evaluate(model, loader, precisions, options.metric)
    if distributed.is_main():
        values = {Precision.of(key): value for key, value in found.items()}
        rows = [(_name(p), f"{100 * values[p]:.2f}", _average_bits(p, info)) for p in precisions]
        print_table(("precision", f"{options.metric} %", "average bits"), rows)
        print(f"{loader.num_samples:,} images")


def _name(precision: Precision) -> str:
    return f"{precision} bits" if precision.is_uniform else str(precision)


def _average_bits(precision: Precision, info: CheckpointInfo) -> str:
    from bitswitch.mixed.cost import average_bits

    available = info.config.table.available
    return f"{average_bits(precision.resolve(available), available):.2f}"
