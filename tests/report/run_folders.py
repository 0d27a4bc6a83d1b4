"""Run folders that were written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitswitch.recipes import Recipe, get_recipe
from bitswitch.recipes.convert import to_json
from bitswitch.training.run import write_json
from bitswitch.training.run_metrics import MetricsFile, MetricsRow

STEPS_PER_EPOCH = 10


def recipe(seed: int = 0, name: str = "cifar10-resnet20", **sections: dict[str, Any]) -> Recipe:
    """A recipe with a float phase of 2 epochs and joint training of 3."""
    base = get_recipe(name).replace(start={"epochs": 2}, joint={"epochs": 3}, run={"seed": seed})
    return base.replace(**sections)


def write_run(
    folder: Path,
    recipe: Recipe,
    float_accuracy: float,
    accuracy: Mapping[int, float],
    *,
    split: str = "held-out",
    timing: Any = None,
    processes: int = 1,
) -> Path:
    """Write what the report reads of a finished run, whose accuracies grow in equal steps to the final ones."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"recipe": to_json(recipe), "processes": processes})
    figures = {str(bits): value for bits, value in accuracy.items()}
    sizes = {str(bits): 100 * (bits + 1) for bits in accuracy}
    results = {"float_accuracy": float_accuracy, "accuracy": figures, "bytes_at": sizes, "float_bytes": 3200}
    write_json(folder / "results.json", results)
    if timing is not None:
        write_json(folder / "timing.json", timing)
    metrics = MetricsFile(folder / "metrics.csv")
    metrics.start()
    for epoch in range(recipe.start.epochs + 1):
        step = epoch * STEPS_PER_EPOCH
        metrics.write([MetricsRow("float", split, epoch, step, 32, accuracy=float_accuracy)])
    for epoch in range(recipe.joint.epochs + 1):
        step = epoch * STEPS_PER_EPOCH
        share = 0.5 + 0.5 * (epoch + 1) / (recipe.joint.epochs + 1)
        for bits, value in accuracy.items():
            gradient = 8.0 / bits / (epoch + 1)
            scaled = gradient if recipe.joint.alrs == "off" else gradient * 2.0 ** (bits - 8)
            if epoch:
                values = {"loss": 1 / epoch, "scale_gradient": gradient, "scaled_gradient": scaled}
                metrics.write([MetricsRow("joint", "train", epoch, step, bits, lr=0.1, scale_lr=0.05, **values)])
            metrics.write([MetricsRow("joint", split, epoch, step, bits, accuracy=value * share)])
    return folder
